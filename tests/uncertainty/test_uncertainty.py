"""Methods of uncertainty on features against independent oracles; Laplace is in test_uncertainty_laplace.py."""

import itertools

import closed_features
import jax
import numpy as np
import pytest
from closed_features import FEATURES, KINDS, POTENTIAL, features
from scipy.spatial.distance import mahalanobis
from scipy.special import logsumexp
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, DotProduct, Exponentiation
from sklearn.mixture import GaussianMixture

from jaxal.acquire.score import root
from jaxal.uncertainty import gaussian, mixture
from jaxal.uncertainty.d_optimality import d_optimality
from jaxal.uncertainty.density import density
from jaxal.uncertainty.gaussian_process import gaussian_process
from jaxal.uncertainty.maxvol import maxvol
from jaxal.uncertainty.scale import FLOOR, likelihood_scale

pytestmark = pytest.mark.usefixtures("double")


def on_host(function):
    """A function of a method and arrays as one program, its result on the host."""
    program = jax.jit(function, static_argnums=0)
    return lambda *arguments: jax.device_get(program(*arguments))


predict, taught = map(on_host, (closed_features.predict, closed_features.taught))
nothing_near = jax.jit(closed_features.nothing_near)


def structures_of(*arguments, **options):
    return jax.device_get(jax.jit(lambda: closed_features.structures_of(*arguments, **options))())


# ---------------------------------------------------------------- scales and roots


def test_the_scale_is_the_most_likely_one_and_garbage_outside_the_mask_does_not_matter():
    rng = np.random.default_rng(1)
    variance = rng.uniform(0.5, 2.0, 50)
    square = 9.0 * variance * rng.chisquare(1, 50)
    mask = np.arange(50) < 40
    scale_of = jax.jit(likelihood_scale)
    scale = float(scale_of(np.where(mask, square, np.nan), np.where(mask, variance, np.nan), mask))
    assert scale == pytest.approx(np.sqrt(np.mean(square[:40] / variance[:40])))

    def likelihood(alpha):
        return np.sum(np.log(alpha**2 * variance[:40]) + square[:40] / (alpha**2 * variance[:40]))

    assert all(likelihood(scale) < likelihood(scale * by) for by in (0.99, 1.01))
    assert float(scale_of(np.full(4, np.nan), np.ones(4), np.zeros(4, bool))) == 1.0
    # one variance of zero does not decide
    low = np.array([1.0, 1.0, 1.0, 0.0])
    assert float(scale_of(np.ones(4), low, np.ones(4, bool))) ** 2 == pytest.approx((3 + 1 / (0.75 * FLOOR)) / 4)
    assert float(jax.jit(jax.grad(root))(0.0)) == 0.0 and float(jax.jit(root)(4.0)) == 2.0


@pytest.mark.parametrize("rows", [1, 4, 30])
def test_an_update_of_the_root_is_the_inverse_of_the_grown_precision(rows):
    rng = np.random.default_rng(rows)
    precision = np.cov(rng.normal(size=(12, 40)))
    new = 3 * rng.normal(size=(rows, 12))
    values, vectors = np.linalg.eigh(precision)
    old = np.asarray(jax.jit(gaussian.inverse_root)(values, vectors))
    updated = jax.jit(gaussian.updated)
    np.testing.assert_allclose(old @ old.T, np.linalg.inv(precision), rtol=1e-8, atol=1e-10)
    factor = np.asarray(updated(old, new))
    expected = np.linalg.inv(precision + new.T @ new)
    np.testing.assert_allclose(factor @ factor.T, expected, rtol=1e-8, atol=1e-12)
    np.testing.assert_array_equal(updated(old, 0 * new), old)


# ---------------------------------------------------------------- Gaussian process


@pytest.mark.parametrize("kernel", ["dot_product", "squared_exponential"])
def test_variance_is_that_of_scikit_learn(kernel):
    """Structures of one atom, all of them inducing."""
    noise = 0.1
    method = gaussian_process(POTENTIAL, 1, kernel=kernel, power=3, length=0.5, inducing=30, noise=noise)
    structures = structures_of(20, 1, 6, kinds=1)
    params = taught(method, structures)
    new = structures_of(10, 1, 7, kinds=1, size=2.0)
    prediction = predict(method, params, new)

    def unit(s):
        feature = features(s.position[:, 0])
        return feature / np.linalg.norm(feature, axis=1, keepdims=True)

    part = Exponentiation(DotProduct(0.0, "fixed"), 3) if kernel == "dot_product" else RBF(0.5, "fixed")
    oracle = GaussianProcessRegressor(part, alpha=noise**2, optimizer=None).fit(unit(structures), np.zeros(20))
    _, deviation = oracle.predict(unit(new), return_std=True)
    scale = params["posterior"]["scale"]
    np.testing.assert_allclose(prediction.energy_spread / scale[0], deviation, rtol=1e-6, atol=1e-7)
    # what the inducing atoms do not tell is the variance without noise
    exact = GaussianProcessRegressor(part, alpha=1e-12, optimizer=None).fit(unit(structures), np.zeros(20))
    _, rest = exact.predict(unit(new), return_std=True)
    np.testing.assert_allclose((prediction.force_spread[:, 0] / scale[1]) ** 2, rest**2, atol=1e-6)


def test_structures_of_several_atoms_and_species_against_the_exact_formula():
    noise = 0.2
    method = gaussian_process(POTENTIAL, KINDS, inducing=30, noise=noise)
    structures, new = structures_of(6, 3, 8), structures_of(4, 3, 9)
    params = taught(method, structures)

    def kernel(a, b):
        fa, fb = (features(s.position) for s in (a, b))
        fa, fb = (f / np.linalg.norm(f, axis=-1, keepdims=True) for f in (fa, fb))
        same = a.species[:, None, :, None] == b.species[None, :, None, :]
        return np.sum(np.where(same, np.einsum("anf,bmf->abnm", fa, fb) ** 2, 0.0), axis=(2, 3))

    within = kernel(structures, structures) + noise**2 * 3 * np.eye(6)
    across = kernel(structures, new)
    variance = np.diag(kernel(new, new)) - np.einsum("ab,ac,cb->b", across, np.linalg.inv(within), across)
    prediction = predict(method, params, new)
    np.testing.assert_allclose((prediction.energy_spread / params["posterior"]["scale"][0]) ** 2, variance, rtol=1e-6)


def test_inducing_atoms_are_the_pivots_and_an_update_with_all_of_them_equals_a_rebuild():
    method = gaussian_process(POTENTIAL, 1, inducing=6, power=6)
    structures = structures_of(12, 1, 10, kinds=1)
    params = taught(method, structures)
    feature = features(structures.position[:, 0])
    unit = feature / np.linalg.norm(feature, axis=1, keepdims=True)
    full = (unit @ unit.T) ** 6
    chosen: list[int] = []
    for _ in range(6):
        rest = np.diag(full).copy()
        if chosen:
            rest -= np.einsum("ab,bc,ca->a", full[:, chosen], np.linalg.inv(full[np.ix_(chosen, chosen)]), full[chosen])
        chosen.append(int(np.argmax(np.round(rest, 12))))
    np.testing.assert_allclose(params["posterior"]["inducing"][:6, :FEATURES], unit[chosen], atol=1e-12)
    assert np.all(params["posterior"]["species"][6:] < 0)

    # three trained structures that are inducing, three more by update: all six as if trained on at once
    few = taught(gaussian_process(POTENTIAL, 1, inducing=3), jax.tree.map(lambda x: x[:3], structures))
    more = jax.tree.map(lambda x: x[3:5], structures)
    method = gaussian_process(POTENTIAL, 1, inducing=3)
    posterior = jax.device_get(jax.jit(method.update)(few, more, nothing_near(more), np.ones(2, bool)))
    updated = {**few, "posterior": posterior}
    assert int(np.sum(posterior["species"] >= 0)) == 5
    new = structures_of(5, 1, 11, kinds=1, size=2.0)
    inside = predict(method, updated, more)
    assert np.all(inside.force_spread < 1e-4 * posterior["scale"][1])
    before, after = predict(method, few, new), predict(method, updated, new)
    assert np.all(after.force_spread <= before.force_spread + 1e-9)
    assert np.all(after.energy_spread <= before.energy_spread + 1e-9)


# ---------------------------------------------------------------- D-optimality


@pytest.mark.parametrize(("count", "size"), [(7, 2), (8, 3), (9, 4)])
def test_maxvol_against_all_subsets(count, size):
    equal = 0
    for seed in range(8):
        rows = np.random.default_rng(seed).normal(size=(count, size))
        active = jax.jit(maxvol, static_argnums=3)(1e-3 * np.eye(size), rows, np.ones(count, bool), 1e-9)
        active = np.asarray(active)
        assert all(np.any(np.all(np.isclose(rows, a), axis=1)) for a in active), "rows of the matrix"
        grade = np.abs(rows @ np.linalg.inv(active))
        assert grade.max() <= 1 + 1e-6
        volume = abs(np.linalg.det(active))
        best = max(abs(np.linalg.det(rows[list(s)])) for s in itertools.combinations(range(count), size))
        assert best * size ** (-size / 2) - 1e-9 <= volume <= best + 1e-9
        equal += volume > best - 1e-9
    assert equal >= 5, "mostly the best there is"


def test_grades_of_trained_atoms_others_and_updates():
    method = d_optimality(POTENTIAL, KINDS)
    structures = structures_of(40, 4, 12)
    params = taught(method, structures)
    trained = predict(method, params, structures)
    assert np.max(trained.force_spread) <= 1.01 + 1e-6
    # gamma written out
    active, new = params["posterior"]["active"], structures_of(10, 4, 13, size=3.0)
    grade = predict(method, params, new).force_spread
    feature, species = features(new.position), new.species
    for b, i in itertools.product(range(10), range(4)):
        expected = np.max(np.abs(np.linalg.solve(active[species[b, i]].T, feature[b, i])))
        assert grade[b, i] == pytest.approx(expected, rel=1e-8)
    assert grade.max() > 2

    posterior = jax.device_get(jax.jit(method.update)(params, new, nothing_near(new), np.arange(10) < 5))
    for s in range(KINDS):
        assert abs(np.linalg.det(posterior["active"][s])) >= abs(np.linalg.det(active[s]))
    after = predict(method, {**params, "posterior": posterior}, new).force_spread
    assert np.max(after[:5]) <= 1.01 + 1e-6 and np.max(grade[:5]) > 2


def test_fewer_atoms_than_features_leave_large_grades_where_nothing_was_seen():
    method = d_optimality(POTENTIAL, 1)
    structures = structures_of(3, 1, 14, kinds=1)
    params = taught(method, structures)
    trained = predict(method, params, structures).force_spread
    assert np.max(trained) <= 1.01 + 1e-6
    assert np.min(predict(method, params, structures_of(5, 1, 15, kinds=1)).force_spread) > 2
    few = d_optimality(POTENTIAL, 1, size=2)
    params = taught(few, structures_of(30, 1, 16, kinds=1))
    turn = params["posterior"]["turn"]
    assert turn.shape == (FEATURES, 2)
    np.testing.assert_allclose(turn.T @ turn, np.eye(2), atol=1e-12)


# ---------------------------------------------------------------- density


def test_one_gaussian_is_the_distance_of_mahalanobis_and_its_update_a_rebuild():
    method = density(POTENTIAL, KINDS, components=1, strength=0.0)
    structures, new = structures_of(20, 4, 17), structures_of(5, 4, 18, size=2.0)
    params = taught(method, structures)
    distance = predict(method, params, new).force_spread / params["posterior"]["scale"][1]
    feature, species = features(structures.position), structures.species
    for kind in range(KINDS):
        own = feature[species == kind]
        inverse = np.linalg.inv(np.cov(own.T, bias=True))
        for b, i in zip(*np.nonzero(new.species == kind), strict=True):
            expected = mahalanobis(features(new.position)[b, i], own.mean(0), inverse)
            assert distance[b, i] == pytest.approx(expected, rel=1e-6)

    few = taught(method, structures, np.arange(20) < 12)
    more = jax.tree.map(lambda x: x[12:], structures)
    updated = jax.jit(method.update)(few, more, nothing_near(more), np.ones(8, bool))
    for name in ("count", "mean", "scatter", "whiten", "level"):
        np.testing.assert_allclose(updated[name], params["posterior"][name], rtol=1e-6, atol=1e-8, err_msg=name)


fitted = jax.jit(mixture.fitted, static_argnums=(2, 4))
density_of, logs_of, square_distance = map(jax.jit, (mixture.density, mixture.logs, mixture.square_distance))


def test_the_mixture_is_that_of_scikit_learn():
    rng = np.random.default_rng(19)
    centers = np.array([[0.0, 0.0, 0.0], [20.0, 0.0, 5.0], [0.0, 25.0, -3.0]])
    shape = ((40, 1.0), (70, 0.5), (50, 1.5))
    points = np.concatenate([c + w * rng.normal(size=(n, 3)) for c, (n, w) in zip(centers, shape, strict=True)])
    there = np.arange(170) < 160
    padded = np.concatenate([points, np.full((10, 3), 50.0)])
    moments = fitted(padded, there, 3, 1e-2, 0.0)
    oracle = GaussianMixture(3, tol=1e-12, max_iter=500, reg_covar=1e-12, means_init=centers).fit(points)
    gaussians = density_of(moments, 1e-2, 0.0)
    new = centers[rng.integers(3, size=30)] + 3 * rng.normal(size=(30, 3))
    whole = logsumexp(logs_of(moments, gaussians, new), axis=-1) - 1.5 * np.log(2 * np.pi)
    np.testing.assert_allclose(whole, oracle.score_samples(new), rtol=1e-4)
    distance = np.asarray(square_distance(moments, gaussians, new))
    bound = np.log(np.sum(oracle.weights_ / np.sqrt(np.linalg.det(2 * np.pi * oracle.covariances_))))
    np.testing.assert_allclose(distance, 2 * (bound - oracle.score_samples(new)), rtol=1e-3, atol=1e-3)
    assert np.all(distance >= 0)


def test_a_component_of_few_points_does_not_collapse():
    """Two points apart from a hundred: without the shared covariance theirs would be none."""
    rng = np.random.default_rng(20)
    points = np.concatenate([rng.normal(size=(100, 4)), 20 + 1e-6 * rng.normal(size=(2, 4))])
    moments = fitted(points, np.ones(102, bool), 2, 1e-2, 10.0)
    np.testing.assert_allclose(np.sort(moments.count), [2, 100], atol=1e-6)
    square = np.asarray(square_distance(moments, density_of(moments, 1e-2, 10.0), points))
    assert np.mean(square[:100]) == pytest.approx(4, rel=1.0)
