"""Dropout, evidential regression and the sketched gradients against oracles, on a potential of a few weights."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from scipy.special import expit
from scipy.stats import t as student
from structures import plain

from jaxal.core.types import Distribution, Label, Lessons, Neighbors, Potential, Structure, Uncertainty
from jaxal.uncertainty import features
from jaxal.uncertainty.dropout import dropout
from jaxal.uncertainty.evidential import Evidence, epistemic, evidential, negative_log_likelihood
from jaxal.uncertainty.gradient_sketch import gradient_sketch, signs

pytestmark = pytest.mark.usefixtures("double")

FEATURES, KINDS, ATOMS = 4, 2, 3
SCALE = 1.7  # eV


def energy(params, structure, near):
    """Nonlinear in its weights and in the positions."""
    del near
    own = params["params"]
    feature = jnp.tanh(jnp.sin(structure.position) @ own["mix"]) + 0.2 * structure.position @ own["mix"]
    feature = jnp.where((structure.species >= 0)[:, None], feature, 0.0)
    return params["constants"]["scale"] * jnp.sum(own["weight"][structure.species] * feature), feature


POTENTIAL = Potential(lambda *_: {}, energy, 1.0)
energies = jax.jit(jax.vmap(energy, (None, 0, 0)))


def structures_of(count, seed) -> Structure:
    rng = np.random.default_rng(seed)
    zero = np.zeros(count, np.int32)
    species = np.tile(np.arange(ATOMS, dtype=np.int32) % KINDS, (count, 1))
    return plain(rng.normal(size=(count, ATOMS, 3)), species, np.zeros((count, 3, 3)), zero, zero)


def nothing_near(structures) -> Neighbors:
    count, atoms = structures.species.shape
    slot = np.full((count, atoms, 1), atoms, np.int32)
    flat = np.zeros((count, atoms, 1, 3))
    return Neighbors(slot, flat, 0 * slot, structures.position, structures.cell, np.zeros(count, bool))


def compiled(method: Uncertainty) -> Uncertainty:
    """The method with each function as one program; op by op they are hundreds."""
    penalty = None if method.penalty is None else jax.jit(method.penalty)
    functions = {name: jax.jit(getattr(method, name)) for name in ("init", "learn", "update", "predict")}
    return method._replace(penalty=penalty, **functions)


def begun(method, seed=1):
    rng = np.random.default_rng(seed)
    own = {"mix": rng.normal(size=(3, FEATURES)), "weight": rng.normal(size=(KINDS, FEATURES))}
    params = {"params": own, "constants": {"scale": np.float64(SCALE)}}
    structures = structures_of(1, 0)
    first = jax.tree.map(lambda x: x[0], (structures, nothing_near(structures)))
    params = jax.device_get(method.init(jax.random.key(seed), params, *first))
    shake = lambda x: x + 0.3 * rng.normal(size=x.shape)  # noqa: E731  biases and shifts, too
    return {**params, "params": jax.tree.map(shake, params["params"])}


def lessons_of(seed=2, trained=4) -> Lessons:
    """So many structures trained on, two held out, one row of garbage."""
    count = trained + 3
    rng, structures = np.random.default_rng(seed), structures_of(count, seed)
    energy = rng.normal(size=count)
    force = rng.normal(size=structures.position.shape)
    for numbers in (structures.position, force, energy):
        numbers[-1] = np.nan
    label = Label(energy, force, np.zeros((count, 3, 3)), np.ones(count, bool))
    row = np.arange(count)
    held = (row >= trained) & (row < trained + 2)
    return Lessons(structures, nothing_near(structures), label, row < trained, held)


def network(weights, feature, species):
    """Outputs [h b n] of heads whose arrays lead with [h], written out."""
    weights = {name: np.asarray(x) for name, x in weights.items()}
    outputs = []
    for first, bias, last, shift in zip(*(weights[k] for k in ("first", "bias", "last", "shift")), strict=True):
        hidden = feature @ first + bias
        hidden = 1.6765 * hidden * expit(hidden)
        outputs.append(np.einsum("bnq,bnq->bn", hidden, last.T[species]) + shift[species])
    return np.stack(outputs)


# ---------------------------------------------------------------- dropout


def masked(weights, feature, hidden):
    """The arrays of one network under masks [k f] and [k q]."""
    rows = [
        {"first": f[:, None] * weights["first"], "bias": weights["bias"]}
        | {"last": q[:, None] * weights["last"], "shift": weights["shift"]}
        for f, q in zip(np.asarray(feature), np.asarray(hidden), strict=True)
    ]
    return {name: np.stack([np.asarray(row[name]) for row in rows]) for name in rows[0]}


def test_members_of_dropout_are_networks_under_masks_about_their_mean():
    method = compiled(dropout(POTENTIAL, KINDS, samples=3, rate=0.4, units=5))
    params, structures = begun(method), structures_of(2, 3)
    posterior = params["posterior"]
    for name, size in (("feature", FEATURES), ("hidden", 5)):
        assert posterior[name].shape == (3, size)
        assert set(np.round(np.unique(posterior[name]), 6)) <= {0.0, round(1 / 0.6, 6)}
    near = nothing_near(structures)
    plain, feature = energies(params, structures, near)
    arrays = masked(params["params"]["dropout"], posterior["feature"], posterior["hidden"])
    extra = SCALE * network(arrays, np.asarray(feature), np.asarray(structures.species)).sum(-1)
    assert np.ptp(extra, axis=0).min() > 1e-2
    prediction = method.predict(params, structures, near)
    np.testing.assert_allclose(prediction.energy, plain + extra, rtol=1e-10)
    wider = {**params, "posterior": {**posterior, "scale": np.float64(2.5)}}
    prediction = jax.device_get(method.predict(wider, structures, near))
    np.testing.assert_allclose(prediction.energy, plain + extra.mean(0) + 2.5 * (extra - extra.mean(0)), rtol=1e-10)
    h = 1e-5

    def moved(h):
        position = structures.position.copy()
        position[:, 1, 2] += h
        return np.asarray(method.predict(wider, structures._replace(position=position), near).energy)

    np.testing.assert_allclose(prediction.force[:, :, 1, 2], (moved(-h) - moved(h)) / (2 * h), rtol=1e-6, atol=1e-8)


def test_training_with_dropout_draws_masks_of_the_right_mean_for_every_structure():
    method = compiled(dropout(POTENTIAL, KINDS, rate=0.4, units=5))
    assert method.potential is not None
    params, structures = begun(method), structures_of(2, 3)
    # with a network that is linear in its last mask and has none before, the mean over masks is no mask
    twins = jax.tree.map(lambda x: np.concatenate([x[:1], x[:1]]), structures)
    own = params["params"]["dropout"]
    blind = {**params, "params": {**params["params"], "dropout": {**own, "first": np.zeros_like(own["first"])}}}

    @jax.jit
    def drawn(key, params, structures):
        assert method.potential is not None
        return method.potential(key).energies(params, structures, nothing_near(structures))[0]  # pyright: ignore

    draws = np.asarray(jax.vmap(drawn, (0, None, None))(jax.random.split(jax.random.key(4), 4000), blind, twins))
    plain, feature = energies(params, twins, nothing_near(twins))
    arrays = masked(blind["params"]["dropout"], np.ones((1, FEATURES)), np.ones((1, 5)))
    right = plain + SCALE * network(arrays, np.asarray(feature), np.asarray(twins.species)).sum(-1)[0]
    assert np.all(np.abs(draws.mean(0) - right) < 5 * draws.std(0) / np.sqrt(4000)) and draws.std() > 0.1
    assert np.mean(draws[:, 0] != draws[:, 1]) > 0.9, "equal structures of a batch have masks of their own"
    key = jax.random.key(5)
    np.testing.assert_array_equal(drawn(key, blind, twins), drawn(key, blind, twins))


def test_the_scale_of_dropout_is_that_of_the_held_out_forces():
    method = compiled(dropout(POTENTIAL, KINDS, samples=4))
    params, lessons = begun(method), lessons_of()
    posterior = method.learn(params, lessons)
    held = jax.tree.map(lambda x: x[4:6], lessons)
    prediction = jax.device_get(method.predict(params, held.structure, held.neighbors))
    square = np.sum((prediction.force.mean(0) - held.label.force) ** 2, axis=-1)
    variance = np.var(prediction.force, axis=0).sum(-1)
    variance = np.maximum(variance, 1e-2 * variance.mean())
    assert float(posterior["scale"]) == pytest.approx(np.sqrt(np.mean(square / variance)), rel=1e-8)
    after = jax.device_get(method.predict({**params, "posterior": posterior}, held.structure, held.neighbors))
    np.testing.assert_allclose(after.force.mean(0), prediction.force.mean(0), atol=1e-10)


# ---------------------------------------------------------------- evidential


def test_the_likelihood_of_evidence_is_that_of_student_t():
    likelihood, likelihood_slopes = jax.jit(negative_log_likelihood), jax.jit(jax.grad(negative_log_likelihood))
    for nu, alpha, beta, error in itertools.product((0.01, 1.0, 30.0), (1.1, 4.0), (1e-3, 2.0), (0.0, -0.3, 5.0)):
        scale = np.sqrt(beta * (1 + nu) / (nu * alpha))
        right = -student.logpdf(error, 2 * alpha, 0.0, scale)
        evidence, error = Evidence(*map(np.float64, (nu, alpha, beta))), np.float64(error)
        assert float(likelihood(evidence, error)) == pytest.approx(right, rel=1e-9, abs=1e-9)
        slopes = likelihood_slopes(evidence, error)
        h = 1e-6
        for slope, step in zip(slopes, np.eye(3), strict=True):
            up, down = (
                -student.logpdf(error, 2 * a, 0.0, np.sqrt(b * (1 + n) / (n * a)))
                for n, a, b in (np.array([nu, alpha, beta]) * (1 + s * h * step) for s in (1, -1))
            )
            size = float(np.dot([nu, alpha, beta], step))
            assert float(slope) * size == pytest.approx((up - down) / (2 * h), rel=1e-4, abs=1e-6)


def test_the_variance_of_the_mean_is_that_of_samples():
    rng = np.random.default_rng(0)
    nu, alpha, beta = 2.0, 6.0, 3.0
    square = 1 / rng.gamma(alpha, 1 / beta, 400_000)
    mean = rng.normal(0, np.sqrt(square / nu))
    assert float(jax.jit(epistemic)(Evidence(nu, alpha, beta))) == pytest.approx(mean.var(), rel=0.02)


def written_out(params, feature, species):
    """(nu, alpha, beta) of energies per atom and of forces, by numpy."""
    output = network(params["params"]["evidential"], np.asarray(feature), np.asarray(species))
    both = []
    for raw in (output[:3].mean(-1), output[3:]):
        nu, more, beta = (np.log1p(np.exp(x + shift)) + 1e-4 for x, shift in zip(raw, (0, 0, -4), strict=True))
        both.append((nu, 1 + more, beta))
    return both


def test_the_penalty_is_the_likelihood_and_the_regularizer_and_trains_the_head_alone():
    options = {"regularizer": 0.3, "weight": 2.0, "units": 5}
    method = compiled(evidential(POTENTIAL, KINDS, **options))
    params, structures, rng = begun(method), structures_of(2, 3), np.random.default_rng(7)
    label = Label(rng.normal(size=2), rng.normal(size=(2, ATOMS, 3)), np.zeros((2, 3, 3)), np.ones(2, bool))
    said = jax.device_get(method.predict(params, structures, nothing_near(structures)))
    of_energy, of_force = written_out(params, said.feature, structures.species)
    total = 0.0
    for (nu, alpha, beta), error in (
        (of_energy, (said.energy[0] - label.energy) / (SCALE * ATOMS)),
        ([x[..., None] for x in of_force], (said.force[0] - label.force) / SCALE),
    ):
        likelihood = -student.logpdf(error, 2 * alpha, 0.0, np.sqrt(beta * (1 + nu) / (nu * alpha)))
        total += np.mean(likelihood + 0.3 * np.abs(error) * (2 * nu + alpha))
    assert method.penalty is not None
    assert float(method.penalty(params, structures, label, said)) == pytest.approx(2 * total, rel=1e-9)

    def trained(trains):
        other = compiled(evidential(POTENTIAL, KINDS, **options, trains=trains))
        assert other.penalty is not None

        def cost(own):
            whole = {**params, "params": own}
            said = other.predict(whole, structures, nothing_near(structures))
            return other.penalty(whole, structures, label, said)  # pyright: ignore[reportOptionalCall]

        return jax.tree.map(lambda x: np.max(np.abs(x)), jax.device_get(jax.jit(jax.grad(cost))(params["params"])))

    alone, whole = trained("head"), trained("model")
    assert alone["mix"] == alone["weight"] == 0 and whole["mix"] > 0 and whole["weight"] > 0
    assert min(jax.tree.leaves(alone["evidential"])) > 0
    # padded atoms count for nothing, whatever they hold
    wide = structures._replace(
        position=np.pad(structures.position, ((0, 0), (0, 2), (0, 0)), constant_values=9.0),
        species=np.pad(structures.species, ((0, 0), (0, 2)), constant_values=-1),
    )
    padded = method.predict(params, wide, nothing_near(wide))
    garbage = label._replace(force=np.pad(label.force, ((0, 0), (0, 2), (0, 0)), constant_values=np.nan))
    assert float(method.penalty(params, wide, garbage, padded)) == pytest.approx(2 * total, rel=1e-9)


def test_evidential_spreads_are_closed_forms_with_the_scales_of_what_is_held_out():
    method = compiled(evidential(POTENTIAL, KINDS))
    params, lessons = begun(method), lessons_of()
    held = jax.tree.map(lambda x: x[4:6], lessons)
    prediction = jax.device_get(method.predict(params, held.structure, held.neighbors))
    of_energy, of_force = written_out(params, prediction.feature, held.structure.species)
    variance = [SCALE**2 * beta / (nu * (alpha - 1)) for nu, alpha, beta in (of_energy, of_force)]
    variance = ATOMS**2 * variance[0], 3 * variance[1]
    for spread, right in zip((prediction.energy_spread, prediction.force_spread), variance, strict=True):
        np.testing.assert_allclose(spread, np.sqrt(right), rtol=1e-9)
    squares = (
        (prediction.energy[0] - held.label.energy) ** 2,
        np.sum((prediction.force[0] - held.label.force) ** 2, axis=-1),
    )
    scale = np.asarray(method.learn(params, lessons)["scale"])
    for factor, square, right in zip(scale, squares, variance, strict=True):
        floored = np.maximum(right, 1e-2 * right.mean())
        assert float(factor) == pytest.approx(np.sqrt(np.mean(square / floored)), rel=1e-8)


# ---------------------------------------------------------------- sketched gradients


def test_directions_are_independent_signs():
    size, number = 4000, 70  # more than there are bits in a word
    row = jax.jit(signs, static_argnums=(0, 2, 3))
    rows = np.stack([row(3, j, size, np.float32) for j in range(number)])
    assert set(np.unique(rows)) == {-1.0, 1.0} and rows.dtype == np.float32
    gram = rows @ rows.T / size
    np.testing.assert_allclose(gram, np.eye(number), atol=5 / np.sqrt(size))
    assert not np.array_equal(rows[0], row(4, 0, size, np.float32))


def observed(params, structure, probes, noise):
    """Jacobian of energy and probed forces [1 + r, P] over their noise, with respect to all weights at once."""
    flat, back = ravel_pytree(params["params"])
    near = jax.tree.map(lambda x: x[0], nothing_near(jax.tree.map(lambda x: x[None], structure)))

    def of(flat, position):
        return energy({**params, "params": back(flat)}, structure._replace(position=position), near)[0]

    along = np.asarray(features.directions(structure, "probes", probes))
    cross = np.asarray(jax.jacfwd(jax.jacfwd(of, 1))(flat, structure.position))  # [n 3 P], of the energy's slopes
    first = np.asarray(jax.jacfwd(of)(flat, structure.position))[None]
    forces = -np.einsum("rnx,nxp->rp", along, cross)
    return np.concatenate([first / (noise[0] * ATOMS), forces / (noise[1] * np.sqrt(probes))])


@pytest.mark.slow
@pytest.mark.parametrize("directions", [0, 5, 12])
def test_the_sketched_posterior_is_that_of_bayesian_linear_regression(directions):
    probes, noise = 2, (0.02, 0.3)
    method = gradient_sketch(
        POTENTIAL,
        KINDS,
        directions=directions,
        samples=2,
        probes=probes,
        energy_noise=noise[0],
        force_noise=noise[1],
        seed=6,
    )
    # more observations than directions: the precision is well conditioned whatever the prior
    params, lessons, new = begun(method), lessons_of(trained=8), structures_of(3, 8)
    flat, back = ravel_pytree(params["params"])
    size = flat.size
    sketch = np.eye(size)
    if directions:
        sketch = np.stack([np.asarray(signs(6, j, size, flat.dtype)) for j in range(directions)]) / directions**0.5
    posterior = jax.jit(method.learn)(params, lessons)
    learned_params = {**params, "posterior": posterior}

    def rows_of(structures, which):
        blocks = [observed(params, jax.tree.map(lambda x, i=i: x[i], structures), probes, noise) for i in which]
        return np.concatenate(blocks) @ sketch.T

    seen = rows_of(lessons.structure, range(8))
    root = np.asarray(posterior["root"])
    precision = np.linalg.inv(root @ root.T)
    prior = precision - seen.T @ seen
    top = np.linalg.eigvalsh(seen.T @ seen)[-1]
    strength = max(np.trace(prior) / len(prior), 1e-12 * top)  # the least there is, where rounding has it all
    assert strength < 1.1 * top
    np.testing.assert_allclose(prior, strength * np.eye(len(prior)), atol=1e-5 * top)

    # of the strengths on the grid none makes the residuals of the held-out forces more likely
    held = jax.tree.map(lambda x: x[8:10], lessons)
    along = jax.vmap(lambda structure: features.directions(structure, "probes", probes))(held.structure)
    reference = jax.device_get(jax.jit(method.predict)(params, held.structure, held.neighbors))
    gap = np.einsum("jrnx,jnx->jr", along, reference.force.mean(0) - held.label.force).ravel()
    gap = gap / (noise[1] * np.sqrt(probes))
    judged = np.concatenate([rows_of(held.structure, [i])[1:] for i in range(2)])

    def surprise(strength):
        covariance = np.linalg.inv(seen.T @ seen + strength * np.eye(len(prior)))
        variance = np.einsum("qd,de,qe->q", judged, covariance, judged)
        variance = np.maximum(variance, 1e-2 * variance.mean())
        scale = np.mean(gap**2 / variance)
        return np.sum(np.log(scale * variance)), np.sqrt(scale)

    grid = [surprise(s) for s in top * np.logspace(-8, 0, 9)]
    mine, scale = surprise(strength)
    assert mine <= min(value for value, _ in grid) + 1e-3
    assert float(posterior["scale"]) == pytest.approx(scale, rel=1e-3)

    def expected(state, covariance):
        distribution = jax.jit(method.predict)(state, new, nothing_near(new))
        gradients = np.concatenate([rows_of(new, [i])[:1] for i in range(3)]) * noise[0] * ATOMS
        variance = np.einsum("bd,de,be->b", gradients, covariance, gradients)
        np.testing.assert_allclose(distribution.energy_spread, float(posterior["scale"]) * np.sqrt(variance), rtol=1e-5)
        return distribution

    prediction = expected(learned_params, root @ root.T)
    # each member is the plain model and its slope along one move of the weights
    delta = float(posterior["scale"]) * np.asarray(posterior["draw"]) @ root.T
    moves = delta @ sketch

    def linear(position, move):
        def of(flat):
            structures = new._replace(position=position)
            whole = {**params, "params": back(flat)}
            return jax.vmap(energy, (None, 0, 0))(whole, structures, nothing_near(structures))[0]

        value, slope = jax.jvp(of, (flat,), (move,))
        return value + slope

    for k, move in enumerate([*moves, *(-moves)]):
        np.testing.assert_allclose(prediction.energy[k], linear(new.position, jnp.asarray(move)), rtol=1e-8, atol=1e-8)
        slope = jax.grad(lambda x, move=move: jnp.sum(linear(x, jnp.asarray(move))))(new.position)
        np.testing.assert_allclose(prediction.force[k], -slope, rtol=1e-7, atol=1e-7)

    # an update adds its rows to the precision exactly, and those alone that are wanted
    wanted = np.array([True, False, True])
    spoilt = new._replace(position=new.position * np.array([1.0, np.nan, 1.0])[:, None, None])
    updated = jax.jit(method.update)(learned_params, spoilt, nothing_near(spoilt), wanted)
    more = rows_of(new, [0, 2])
    right = np.linalg.inv(precision + more.T @ more)
    np.testing.assert_allclose(updated["root"] @ updated["root"].T, right, rtol=1e-5, atol=1e-8 * np.abs(right).max())
    expected({**params, "posterior": updated}, right)


def test_energies_alone_and_no_labels_at_all():
    method = compiled(gradient_sketch(POTENTIAL, KINDS, directions=6, probes=0))
    params, lessons, new = begun(method), lessons_of(), structures_of(2, 8)
    none = lessons._replace(trained=np.zeros(7, bool), held=np.zeros(7, bool))
    for data in (lessons, none):
        posterior = method.learn(params, data)
        distribution: Distribution = method.predict({**params, "posterior": posterior}, new, nothing_near(new))
        assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves((posterior, distribution)))
        assert np.all(np.asarray(distribution.energy_spread) > 0)
