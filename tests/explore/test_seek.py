"""Biases: forces and stress against finite differences, published forms by hand, and what they do to walkers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from structures import plain

from jaxal.acquire.gate import threshold
from jaxal.acquire.score import max_force_spread, mean_force_spread
from jaxal.committee import evaluation
from jaxal.core.types import Bias, Distribution, Moment, Prediction, Structure, Uncertainty
from jaxal.core.units import BOLTZMANN
from jaxal.data import neighbors
from jaxal.explore import bias_forces, biases
from jaxal.explore.bias_forces import Term
from jaxal.explore.descent import descent
from jaxal.explore.dynamics import nvt_langevin
from jaxal.explore.stepping import per_walker
from jaxal.explore.variables import NONE
from jaxal.potential.equivariant import equivariant
from jaxal.program.step import Bounds, Walk, make_walk, nothing

predicted = jax.jit(evaluation.predict, static_argnums=0)
find = jax.jit(neighbors.find, static_argnums=0)
TABLE, MEMBERS, ATOMS = (1, 8), 3, 4
MASS = (15.999, 1.008, 1.008, 15.999)  # amu


@functools.cache
def model(dtype="float64"):
    """A committee with random weights, and one open and one periodic structure with their neighbors."""
    rng = np.random.default_rng(3)
    position = 1.3 * np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [1, 1, 0.6]]) + rng.normal(0, 0.1, (2, ATOMS, 3))
    cell = np.stack([np.zeros((3, 3)), np.diag([4.0, 4.4, 4.8]) + 0.2])
    species = np.array([[1, 0, 0, 1]] * 2, np.int32)
    zero, mass = np.zeros(2, np.int32), np.array([MASS] * 2, dtype)
    structures = plain(position.astype(dtype), species, cell.astype(dtype), zero, zero, mass=mass)
    committee = evaluation.Committee(equivariant(TABLE, cutoff=3.0, channels=2, l_max=1, layers=1, radial=4), MEMBERS)
    spec = neighbors.plan(structures, 3.0, 0.5)
    near = jax.device_get(find(spec, structures))
    params = evaluation.init(committee, jax.random.key(0), *jax.tree.map(lambda x: x[0], (structures, near)))
    params = jax.tree.map(lambda x: x.astype(dtype) if x.dtype.kind == "f" else x, jax.device_get(params))
    return committee, params, spec, structures, near


def by_sampling(potential) -> Uncertainty:
    """A method whose only uncertainty is a closed form of the features, with a gradient of its own."""

    def predict(params, structures, near):
        energy, force, stress, feature = evaluation.evaluate_batch(potential, params, structures, near)
        spread = jnp.sqrt(0.01 + jnp.sum(feature**2, axis=(1, 2)))
        return Distribution(energy[None], force[None], stress[None], feature, spread, jnp.sum(feature**2, axis=2))

    return Uncertainty(lambda key, params, s, n: params, lambda p, x: {}, lambda p, s, n, w: {}, predict)


def term(bias: Bias) -> Term:
    return Term("bias", bias, NONE, ())


CASES = {
    "members": (biases.uncertainty_driven(max_force_spread, NONE, height=0.7, width=1.0, largest=1e9), False),
    "score": (biases.uncertainty_driven(mean_force_spread, NONE, measure="score", width=2.0, largest=1e9), False),
    "adversarial": (biases.adversarial(mean_force_spread, NONE, temperature=800.0, largest=1e9), False),
    "closed form": (biases.uncertainty_driven(max_force_spread, NONE, height=0.7, width=2.0, largest=1e9), True),
}


def total_energy(case: str):
    """E_bias (eV) of positions and strains, from the committee's predictions alone; and the bias and its committee."""
    bias, closed = CASES[case]
    committee, params, _, structures, near = model()
    if closed:
        committee = committee._replace(uncertainty=by_sampling(committee.potential))

    @jax.jit
    def energy(position, strain):
        moved = structures._replace(position=position)
        moved = moved._replace(
            position=jnp.einsum("bnx,bxy->bny", position, jnp.eye(3) + strain),
            cell=jnp.einsum("bnx,bxy->bny", structures.cell, jnp.eye(3) + strain),
        )
        prediction = evaluation.predict(committee, params, moved, near)
        return jax.vmap(lambda p, s: bias.energy((), jnp.zeros(0), bias.measure(p, s), s, 0.0))(prediction, moved)

    return energy, bias, committee


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("case", CASES)
def test_force_and_stress_are_the_slopes_of_the_bias_energy(case):
    energy, bias, committee = total_energy(case)
    structures = model()[3]
    push = pushed(bias, committee)
    none, step = np.zeros((2, 3, 3)), 1e-4
    np.testing.assert_allclose(push.report["bias_bias"], energy(structures.position, none), rtol=1e-12)
    force = np.zeros((2, ATOMS, 3))
    for atom, axis in np.ndindex(ATOMS, 3):
        small = np.zeros((2, ATOMS, 3))
        small[:, atom, axis] = step
        up, down = (np.asarray(energy(structures.position + sign * small, none)) for sign in (1, -1))
        force[:, atom, axis] = -(up - down) / (2 * step)
    assert np.abs(force).max() > 1e-4
    np.testing.assert_allclose(push.force, force, rtol=1e-5, atol=1e-7 * np.abs(force).max())
    stress = np.zeros((3, 3))
    for i, j in np.ndindex(3, 3):
        strain = np.zeros((2, 3, 3))
        strain[:, i, j] += 0.5 * step
        strain[:, j, i] += 0.5 * step
        up, down = (np.asarray(energy(structures.position, sign * strain))[1] for sign in (1, -1))
        stress[i, j] = (up - down) / (2 * step) / abs(np.linalg.det(structures.cell[1]))
    np.testing.assert_allclose(push.stress[1], stress, rtol=1e-5, atol=1e-7 * np.abs(stress).max())
    np.testing.assert_array_equal(push.stress[0], 0.0)
    np.testing.assert_allclose(push.force.sum(1), 0.0, atol=1e-10)


@pytest.mark.usefixtures("double")
def test_the_members_closed_form_is_the_gradient_through_the_committee():
    committee, params, _, structures, near = model()
    prediction = predicted(committee, params, structures, near)
    rise = jax.jit(bias_forces.rise, static_argnums=(0, 1))
    short = rise(committee, bias_forces.energy_deviation, params, structures, near, prediction)
    long = rise(committee, lambda p, s: bias_forces.energy_deviation(p, s), params, structures, near, prediction)
    for a, b in zip(short, long, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-10)


def pushed(bias: Bias, committee: evaluation.Committee) -> bias_forces.Push:
    """What a bias without a memory does to the two structures."""
    _, params, _, structures, near = model()

    @jax.jit
    def push():
        prediction = evaluation.predict(committee, params, structures, near)
        at = params, structures, near, prediction, jnp.zeros(2), jnp.ones(2, bool)
        return bias_forces.push((term(bias),), committee, ((),), *at)[0]

    return jax.device_get(push())


def of_one(energy=(1.0, 1.2, 0.5)) -> tuple[Prediction, Structure]:
    force = np.random.default_rng(1).normal(size=(3, ATOMS, 3))
    structure = jax.tree.map(lambda x: x[0], model()[3])
    return Prediction(np.array(energy), force, np.zeros((3, 3, 3)), np.zeros((ATOMS, 1))), structure


@pytest.mark.usefixtures("double")
def test_uncertainty_driven_is_the_published_form():
    """From the sum over the members of squared deviations, by hand."""
    prediction, structure = of_one()
    energy = prediction.energy
    square = np.sum((energy - energy.mean()) ** 2)
    expected = 0.8 * (np.exp(-square / (len(energy) * ATOMS * 0.1**2)) - 1)
    bias = biases.uncertainty_driven(max_force_spread, NONE, height=0.8, width=0.1)
    value = jax.jit(bias_forces.energy_deviation)(prediction, structure)
    value = jax.jit(bias.energy)((), np.zeros(0), value, structure, np.zeros(()))
    assert float(value) == pytest.approx(expected, rel=1e-12)


@pytest.mark.usefixtures("double")
def test_hyperactive_force_is_a_fraction_of_the_mean_force():
    """Fed the same slopes again and again, and averages over what it saw while they change."""
    _, structure = of_one()
    bias = biases.hyperactive(max_force_spread, NONE, fraction=0.3, memory=3)

    learn, slope_of = jax.jit(bias.learn), jax.jit(jax.grad(bias.energy, argnums=2))

    def learned(state, slope, force):
        arguments = np.zeros(0), np.asarray(1.0), slope, force
        return learn(state, Moment(*arguments, structure, np.zeros(()), np.asarray(True)))

    def tau(state):
        return -float(slope_of(state, np.zeros(0), np.asarray(0.5), structure, np.zeros(())))

    rng = np.random.default_rng(2)
    slopes, forces = rng.normal(size=(2, 6, ATOMS, 3))
    state = begun = bias.init(structure, np.int32(0))
    rms = lambda x: np.sqrt(np.mean(np.sum(x**2, axis=-1)))  # noqa: E731
    means = np.zeros(2)
    for number, (slope, force) in enumerate(zip(slopes, forces, strict=True), start=1):
        state = learned(state, slope, force)
        means += (np.array([rms(force), rms(slope)]) - means) / min(number, 3)
        assert tau(state) == pytest.approx(0.3 * means[0] / means[1], rel=1e-12)
    assert rms(tau(learned(begun, slopes[0], forces[0])) * slopes[0]) == pytest.approx(0.3 * rms(forces[0]), rel=1e-12)


@pytest.mark.usefixtures("double")
def test_no_atom_is_pushed_harder_than_the_largest_and_the_direction_stays():
    free = CASES["members"][0]
    whole = pushed(free, model()[0])
    before = np.linalg.norm(whole.force, axis=-1).max(-1)
    largest = 0.1 * float(before.min())
    capped = pushed(free._replace(largest=largest), model()[0])
    np.testing.assert_allclose(np.linalg.norm(capped.force, axis=-1).max(-1), largest, rtol=1e-9)
    ratio = largest / before
    np.testing.assert_allclose(capped.force, ratio[:, None, None] * whole.force, rtol=1e-9, atol=1e-15)
    np.testing.assert_allclose(capped.stress, ratio[:, None, None] * whole.stress, rtol=1e-9, atol=1e-15)


@functools.cache
def walked(bias: Bias | None, explorer, score=mean_force_spread, steps=40):
    """Walkers on the open structure after `steps`, and their scores and energies before and after."""
    committee, params, _, structures, _ = model("float32")
    start = jax.tree.map(lambda x: np.stack([x[0]] * 4), structures)
    spec = neighbors.plan(start, 3.0, 0.5)._replace(capacity=ATOMS)
    near = find(spec, start)
    terms = () if bias is None else (term(bias),)
    walk = make_walk(committee, per_walker(explorer), score, TABLE, spec, steps, "mean", terms)
    first = predicted(committee, params, start, near)
    force, stress = first.force.mean(1), first.stress.mean(1)
    keys = jax.random.split(jax.random.key(5), 4)
    walkers = jax.jit(jax.vmap(explorer.init))(keys, start, force, stress, np.zeros(4, np.int32))
    drift = jax.jit(bias_forces.begun, static_argnums=0)(terms, start)
    gate = threshold(limit=0.1).init()
    bounds = Bounds(*map(jnp.asarray, (1e6, 0.2, 1e6, 1e6)), jnp.ones(2, bool))
    unseen = nothing(start, force, stress, drift, bias_forces.names(terms))
    begun = Walk(walkers, near, unseen, jnp.zeros(4, bool), drift)
    end = jax.jit(walk)(params, gate, None, bounds, begun)
    before = jax.jit(jax.vmap(score))(first, start)
    return end, np.asarray(before), np.asarray(first.energy.mean(1))


COLD = nvt_langevin(temperature=50.0, timestep=0.5)


@pytest.mark.slow
def test_a_bias_of_no_height_changes_nothing():
    """But the rounding: XLA fuses another program in another way."""
    flat = biases.uncertainty_driven(max_force_spread, NONE, height=0.0)
    ends = [walked(bias, COLD)[0] for bias in (None, flat)]
    alike = [(end.candidate._replace(drift=(), report={}), end.full) for end in ends]
    for a, b in zip(*map(jax.tree.leaves, alike), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    "bias",
    [
        biases.uncertainty_driven(mean_force_spread, NONE, height=5.0, width=1.0),
        biases.hyperactive(mean_force_spread, NONE, fraction=1.0),
    ],
    ids=["uncertainty_driven", "hyperactive"],
)
def test_walkers_under_a_bias_become_less_certain(bias):
    """On average over walkers that begin with the same momenta as unbiased ones."""
    deviation = lambda p, s: bias_forces.energy_deviation(p, s)  # noqa: E731
    plain, biased = (walked(choice, COLD, deviation)[0].candidate.score for choice in (None, bias))
    assert np.mean(biased) > np.mean(plain)


@pytest.mark.slow
def test_adversarial_descent_raises_the_score_at_bounded_energy():
    """The objective rises, so the energy by less than 2 kT ln(score' / score)."""
    bias = biases.adversarial(mean_force_spread, NONE, temperature=2000.0)
    end, before, energy = walked(bias, descent(rate=0.002, jolt=0.0))
    after = np.asarray(end.candidate.score)
    assert np.all(after > 1.02 * before)
    rise = np.asarray(end.candidate.energy) - energy
    assert np.all(rise < 2 * BOLTZMANN * 2000.0 * np.log(after / before))


@pytest.mark.slow
def test_jolted_walkers_part_and_descend_without_a_bias():
    end, _, energy = walked(None, descent(rate=0.002, jolt=0.01))
    assert np.all(np.asarray(end.candidate.energy) < energy)
    assert len({tuple(np.ravel(x)) for x in np.asarray(end.walkers.structure.position)}) == 4
