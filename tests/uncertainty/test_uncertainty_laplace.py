"""Last-layer Laplace against Bayesian linear regression written out in numpy, energies and forces."""

import closed_features
import jax
import numpy as np
import pytest
from closed_features import FEATURES, KINDS, POTENTIAL, energy, features, features_slope, lessons_of, nothing_near

from jaxal.uncertainty.features import directions
from jaxal.uncertainty.laplace import laplace
from jaxal.uncertainty.scale import FLOOR

pytestmark = pytest.mark.usefixtures("double")
predict, taught = (jax.jit(f, static_argnums=0) for f in (closed_features.predict, closed_features.taught))
sketched = jax.jit(directions, static_argnums=(1, 2))


def structures_of(*arguments):
    return jax.device_get(jax.jit(lambda: closed_features.structures_of(*arguments))())


def design(structure, rows, options, signs=None):
    """Rows of Bayesian linear regression over their noise, in numpy: the energy, then the force components."""
    position, species = structure.position, structure.species
    atoms, blocks = len(position), []
    phi = np.zeros((KINDS, FEATURES))
    jacobian = np.zeros((KINDS, FEATURES, atoms, 3))
    for i in range(atoms):
        phi[species[i]] += features(position)[i]
        jacobian[species[i], :, i] += features_slope(position)[i]
    jacobian = jacobian.reshape(KINDS * FEATURES, -1)
    blocks.append(phi.reshape(1, -1) / (atoms * options["energy_noise"]))
    if rows == "forces":
        blocks.append(jacobian.T / options["force_noise"])
    if rows == "probes":
        blocks.append(signs.reshape(len(signs), -1) @ jacobian.T / (options["force_noise"] * len(signs) ** 0.5))
    return np.concatenate(blocks)


NOISE = {"energy_noise": 0.3, "force_noise": 0.7}


def signs_of(structure, probes):
    return np.asarray(sketched(structure, "probes", probes))


@pytest.mark.parametrize("rows", ["energy", "forces", "probes"])
def test_laplace_is_bayesian_linear_regression(rows):
    """Energies and forces in closed form, the prior and the scale by a search over the likelihood written out."""
    atoms, probes, samples = 3, 2, 3000
    method = laplace(POTENTIAL, KINDS, rows=rows, probes=probes, samples=samples, **NOISE)
    structures = structures_of(9, atoms, 2)
    trained, held = np.arange(9) < 5, (np.arange(9) >= 5) & (np.arange(9) < 8)
    params = jax.device_get(taught(method, structures, trained, held))
    each = [jax.tree.map(lambda x, i=i: x[i], structures) for i in range(9)]
    designs = [design(s, rows, NOISE, signs_of(s, probes)) for s in each]
    gram = sum(d.T @ d for d, use in zip(designs, trained, strict=True) if use)

    # residuals of the held-out structures, over the same noise
    label = jax.device_get(lessons_of(structures, trained, held).label)
    weight = params["params"]["weight"]
    squares, regressors = [], []
    for i in np.flatnonzero(held):
        position, kinds = each[i].position, each[i].species
        if rows == "energy":
            gap = np.sum(weight[kinds] * features(position)) - label.energy[i]
            squares.append((gap / (atoms * NOISE["energy_noise"])) ** 2)
            regressors.append(designs[i][0])
            continue
        gap = -np.einsum("nf,nfx->nx", weight[kinds], features_slope(position)) - label.force[i]
        if rows == "forces":
            squares += list((gap.reshape(-1) / NOISE["force_noise"]) ** 2)
        else:
            along = np.einsum("qnx,nx->q", signs_of(each[i], probes), gap)
            squares += list((along / NOISE["force_noise"]) ** 2 / probes)
        regressors += list(designs[i][1:])
    squares, regressors = np.asarray(squares), np.asarray(regressors)
    choices = []
    for strength in np.linalg.eigvalsh(gram)[-1] * np.logspace(-8, 0, 13):
        variance = np.einsum("qd,de,qe->q", regressors, np.linalg.inv(gram + strength * np.eye(len(gram))), regressors)
        variance = np.maximum(variance, FLOOR * variance.mean())
        alpha2 = np.mean(squares / variance)
        choices.append((np.sum(np.log(alpha2 * variance) + squares / (alpha2 * variance)), strength, alpha2))
    _, strength, alpha2 = min(choices)
    covariance = alpha2 * np.linalg.inv(gram + strength * np.eye(len(gram)))

    new = structures_of(4, atoms, 3)
    prediction = jax.device_get(predict(method, params, new))
    root = params["posterior"]["scale"] * params["posterior"]["root"]
    np.testing.assert_allclose(root @ root.T, covariance, rtol=1e-6, atol=1e-9 * np.abs(covariance).max())
    for i in range(4):
        matrix = design(
            jax.tree.map(lambda x, i=i: x[i], new), "forces", {"energy_noise": 1 / atoms, "force_noise": 1.0}
        )
        variance = np.einsum("qd,de,qe->q", matrix, covariance, matrix)
        assert prediction.energy_spread[i] ** 2 == pytest.approx(variance[0], rel=1e-6)
        # the samples' own variance approaches it, within four standard errors of a variance of that many draws
        close = 4 * np.sqrt(2 / samples)
        np.testing.assert_allclose(np.var(prediction.energy[:, i]), variance[0], rtol=close)
        np.testing.assert_allclose(np.var(prediction.force[:, i], axis=0).reshape(-1), variance[1:], rtol=close)
    plain = jax.jit(jax.vmap(lambda p, s: energy(p, s, None)[0], (None, 0)))(params, new)
    np.testing.assert_allclose(prediction.energy.mean(0), plain, rtol=1e-10)


@pytest.mark.parametrize("rows", ["energy", "forces", "probes"])
def test_a_rank_k_update_of_laplace_equals_a_rebuild(rows):
    method = laplace(POTENTIAL, KINDS, rows=rows, **NOISE)
    structures = structures_of(8, 3, 4)
    held = np.arange(8) >= 6
    few = taught(method, structures, np.arange(8) < 3, held)
    more = jax.tree.map(lambda x: x[3:6], structures)
    wanted = np.array([True, False, True])
    updated = jax.jit(method.update)(few, more, jax.jit(nothing_near)(more), wanted)
    # the precision of the same prior with the rows of the two more structures
    rows_of = [jax.tree.map(lambda x, i=i: x[i], structures) for i in (3, 5)]
    added = np.concatenate([design(s, rows, NOISE, signs_of(s, 4)) for s in rows_of])
    old = np.asarray(few["posterior"]["root"])
    expected = np.linalg.inv(np.linalg.inv(old @ old.T) + added.T @ added)
    new = np.asarray(updated["root"])
    np.testing.assert_allclose(new @ new.T, expected, rtol=1e-7, atol=1e-10 * np.abs(expected).max())
    np.testing.assert_array_equal(updated["scale"], few["posterior"]["scale"])


def test_probes_are_an_unbiased_sketch_of_all_forces():
    structure = jax.tree.map(lambda x: x[0], structures_of(1, 3, 5))
    whole = design(structure, "forces", NOISE)[1:]
    sketch = design(structure, "probes", NOISE, signs_of(structure, 20000))[1:]
    exact = whole.T @ whole
    np.testing.assert_allclose(sketch.T @ sketch, exact, atol=0.05 * np.abs(exact).max())
    signs = signs_of(structure, 4)
    assert set(np.unique(signs)) == {-1.0, 1.0}
    np.testing.assert_array_equal(signs, signs_of(structure, 4))
    assert not np.array_equal(signs, signs_of(structure._replace(position=structure.position + 0.1), 4))
