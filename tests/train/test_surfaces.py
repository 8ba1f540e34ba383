"""Several charges and spins in one training: their offsets, and two surfaces of one molecule learned together."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule

from jaxal.committee.evaluation import Committee, predict
from jaxal.core.types import Label
from jaxal.data import neighbors
from jaxal.data.structure import from_atoms
from jaxal.label.methods.tblite import tblite
from jaxal.label.task import OPEN, Task
from jaxal.potential import electrons as inputs
from jaxal.potential.equivariant import equivariant
from jaxal.run import training_data
from jaxal.train import electrons
from jaxal.train import fit as training
from jaxal.train.loss import LossWeights
from jaxal.train.reference import reference_energies

COSTS = {(0, 0): 0.0, (1, 1): 12.0, (-1, 1): -0.5, (0, 2): 1.5}  # eV
ATOMS = np.array([-13.6, -430.0])  # eV


def batch_of(names, states):
    structures = from_atoms([molecule(name) for name in names], (1, 8), dtype=np.float64)
    charge, spin = (np.array(x, np.int32) for x in zip(*states, strict=True))
    return structures._replace(charge=charge, spin=spin)  # pyright: ignore


def counted(structures):
    return electrons.counted(structures, 2) @ ATOMS


def test_offsets_are_what_differs_between_ions_and_neutrals_of_the_same_atoms():
    names = ["H2O", "OH", "H2O2", "H2", "O2"] * 4
    states = [state for state in COSTS for _ in range(5)]
    structures = batch_of(names, states)
    energy = counted(structures) + [COSTS[state] for state in states]
    np.testing.assert_allclose(reference_energies(structures, energy, 2), ATOMS, rtol=1e-9)
    binding = -2.0 * (np.asarray(structures.species) >= 0).sum(-1)  # is the model's to learn, whatever the references
    for rest in (energy, energy - counted(structures), energy - counted(structures) + binding):
        table = electrons.offsets(structures, rest, 2)
        for state, cost in COSTS.items():
            assert table[inputs.row(*state)] == pytest.approx(cost, abs=1e-5)
        assert np.count_nonzero(table) == 3
    unknown = np.where(np.arange(20) == 3, np.nan, energy)
    np.testing.assert_allclose(electrons.offsets(structures, unknown, 2), table, atol=1e-5)
    free = reference_energies(structures, energy, 2, settled={0: -14.0})
    assert free[0] == -14.0 and abs(free[1] - ATOMS[1]) < 1.0  # not an ionization energy off
    isolated = dict(enumerate(ATOMS + 2.0))  # what binds the atoms is theirs, what a charge costs is not
    np.testing.assert_allclose(reference_energies(structures, energy, 2, isolated), ATOMS, atol=1e-3)


def test_structures_of_one_charge_and_spin_have_no_offset():
    structures = batch_of(["H2O", "H2O", "OH"], [(1, 1)] * 3)
    energy = counted(structures) + 12.0
    assert electrons.columns(structures)[0] == ()
    assert not np.any(electrons.offsets(structures, energy, 2))
    # whose ionization energy is their atoms'
    reference = reference_energies(structures, energy, 2)
    np.testing.assert_allclose(reference, [ATOMS[0], ATOMS[1] + 12.0], rtol=1e-6)


def test_what_only_one_charge_has_is_its_atoms():
    """Nothing says whether a hydroxide's energy is that of its charge. The references take it, nearly all; where they
    are those of free atoms it is the charge's.
    """
    structures = batch_of(["OH", "OH", "H2"], [(-1, 0), (-1, 0), (0, 0)])
    energy = np.array([-440.0, -440.0, -27.2])
    reference = reference_energies(structures, energy, 2)
    np.testing.assert_allclose(reference, [-13.6, -426.4], rtol=1e-4)
    counts = electrons.counted(structures, 2)
    offset = electrons.offsets(structures, energy - counts @ reference, 2)[inputs.row(-1, 0)]
    assert abs(offset) < 0.1
    np.testing.assert_allclose(counts @ reference + [offset, offset, 0], energy, atol=1e-3)
    assert electrons.offsets(structures, energy - counts @ ATOMS, 2)[inputs.row(-1, 0)] == pytest.approx(3.6, abs=1e-3)


# ---------------------------------------------------------------- learning


def rms(values):
    return float(np.sqrt(np.mean(values**2)))


def learner(structures, table, number, **options):
    """(structures, labels, steps, seed) -> (force errors, energy errors) on others: one model, compiled once."""
    part = equivariant(table, **options, electrons="on")
    committee = Committee(part, 1)
    near = neighbors.plan(structures, part.cutoff, 0.0, 1.0)
    recipe = training.Recipe(weights=LossWeights(1.0, 1.0, 0.0, None), bootstrap=0.0)
    rates = jnp.float32(5e-3), jnp.float32(1e-4)

    @jax.jit
    def fit(state, buffer, key, steps):
        return training.fit(committee, recipe, near, state, buffer, key, steps, *rates)[0].average

    said = jax.jit(lambda params, batch: predict(committee, params, batch, neighbors.find(near, batch)))

    def learn(known, others, steps, seed=0):
        key = jax.random.key(seed)
        reference = reference_energies(known[0], known[1].energy, len(table))
        kept, truth = (training_data.cast(*pair, reference, np.float32) for pair in (known, others))
        params = training_data.new_params(committee, key, near, *kept)
        held = np.zeros(len(known[1].energy), bool)
        buffer = training_data.training_set(*kept, held, 1, number, key, 0.0)
        params = fit(training.init(recipe, params), buffer, key, jnp.int32(steps))
        answer = said(params, truth[0])
        return tuple(
            np.asarray(x) for x in (answer.force[:, 0] - truth[1].force, answer.energy[:, 0] - truth[1].energy)
        )

    return learn


def compared(structures, labels, states, trained, steps, seed, learn):
    """Force errors of one model of all states, of one of each alone (eV/Å, by state); energy errors of the former (eV).

    Each state has as many `steps` in either.
    """
    own = np.array(list(zip(np.asarray(structures.charge), np.asarray(structures.spin), strict=True)))
    rows = [np.all(own == state, axis=-1) for state in states]

    def of(mask):
        return jax.tree.map(lambda x: np.asarray(x)[mask], (structures, labels))

    force, energy = learn(of(trained), of(~trained), len(states) * steps, seed)
    together = [rms(force[row[~trained]]) for row in rows]
    alone = [rms(learn(of(trained & row), of(~trained & row), steps, seed)[0]) for row in rows]
    return np.array(together), np.array(alone), rms(energy)


def two_surfaces(count):
    """Water on two surfaces: springs of the bonds that are stiffer, shorter and 12 eV lower in the neutral."""
    rng = np.random.default_rng(0)
    frames, energies, forces, states = [], [], [], [(0, 0), (1, 1)]
    for stiff, rest, level in ((40.0, 0.96, 0.0), (20.0, 1.06, 12.0)):
        for _ in range(count):
            atoms = molecule("H2O")
            atoms.positions += rng.normal(0, 0.06, (3, 3))
            position = atoms.positions
            energy, force = -460.0 + level, np.zeros((3, 3))
            for a, b, much, length in ((0, 1, stiff, rest), (0, 2, stiff, rest), (1, 2, 0.2 * stiff, 1.6 * rest)):
                d = position[b] - position[a]
                r = np.linalg.norm(d)
                energy += 0.5 * much * (r - length) ** 2
                pull = much * (r - length) * d / r
                force[a] += pull
                force[b] -= pull
            frames.append(atoms)
            energies.append(energy)
            forces.append(force)
    charge, spin = (np.repeat(np.int32(x), count) for x in zip(*states, strict=True))
    structures = from_atoms(frames, (1, 8), dtype=np.float64)._replace(charge=charge, spin=spin)  # pyright: ignore
    absent = np.full((2 * count, 3, 3), np.nan)
    return structures, Label(np.array(energies), np.array(forces), absent, np.ones(2 * count, bool))  # pyright: ignore


@pytest.mark.slow
def test_two_charges_are_learned_together_as_each_alone():
    """Measured: 0.41 and 0.46 of the errors alone; what the two have in common is learned from both."""
    structures, labels = two_surfaces(40)
    options = {"cutoff": 3.0, "channels": 4, "l_max": 1, "layers": 1, "repulsion": False, "radial_hidden": 0}
    trained = np.tile(np.arange(40) < 28, 2)
    learn = learner(structures, (1, 8), 56, **options)
    together, alone, energy = compared(structures, labels, ((0, 0), (1, 1)), trained, 200, 0, learn)
    assert np.all(together < 0.8 * alone), (together, alone)
    assert energy < 0.15  # 12 eV lie between the surfaces


@pytest.mark.slow
def test_three_charges_of_nitrogen_dioxide_are_learned_together_as_each_alone():
    """Linear cation, bent radical and anion, by GFN2-xTB; 0.46, 0.77 and 0.94 of the errors 1000 steps, 3 seeds."""
    backend = tblite()
    rng = np.random.default_rng(0)
    states = ((1, 0), (0, 1), (-1, 0))
    frames, answers, own = [], [], []
    for state, half, length in zip(states, (90.0, 67.0, 58.0), (1.13, 1.20, 1.26), strict=True):
        bent = np.deg2rad(half)
        ends = length * np.array([[0, 0, 0], [np.sin(bent), np.cos(bent), 0], [-np.sin(bent), np.cos(bent), 0]])
        while own.count(state) < 200:
            atoms = Atoms("NO2", ends + rng.normal(0, 0.05, (3, 3)))
            answer = backend.calculate(Task(atoms.numbers, atoms.positions, *OPEN, *state))
            assert answer.ok, answer.reason
            frames.append(atoms)
            answers.append(answer)
            own.append(state)
    charge, spin = (np.array(x, np.int32) for x in zip(*own, strict=True))
    structures = from_atoms(frames, (7, 8), dtype=np.float64)._replace(charge=charge, spin=spin)  # pyright: ignore
    energy, force = (np.array([getattr(answer, name) for answer in answers]) for name in ("energy", "force"))
    labels = Label(energy, force, np.full((600, 3, 3), np.nan), np.ones(600, bool))  # pyright: ignore
    learn = learner(structures, (7, 8), 450, cutoff=4.0, channels=8)
    results = [
        compared(structures, labels, states, np.tile(np.arange(200) < 150, 3), 600, seed, learn) for seed in range(2)
    ]
    together, alone = (np.sqrt(np.mean(np.square([x[n] for x in results]), axis=0)) for n in (0, 1))
    assert np.all(together < 1.25 * alone), (together, alone)
    assert all(x[2] < 0.05 for x in results)  # 13 and 7 eV lie between the surfaces
