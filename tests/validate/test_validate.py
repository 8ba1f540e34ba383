"""Validation against numbers known beforehand: closed forms, drawn errors, GFN2-xTB."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase import Atoms
from ase.build import add_adsorbate, bulk, fcc100, molecule
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms
from ase.io import read, write
from scipy import stats

from jaxal.committee.evaluation import Committee
from jaxal.core import registry
from jaxal.core.types import InputError, Label, Potential, Structure
from jaxal.core.units import BOLTZMANN, KCAL_PER_MOL
from jaxal.data import files, neighbors
from jaxal.data.frames import of_atoms
from jaxal.data.structure import from_atoms
from jaxal.deploy import model as models
from jaxal.explore.dynamics import nve
from jaxal.potential.pair import lennard_jones, morse
from jaxal.uncertainty import bound
from jaxal.validate import command
from jaxal.validate.barrier import barrier, mirrored_transfer
from jaxal.validate.calibration import auroc, calibration, likelihood
from jaxal.validate.dynamics import block_error, density, frames_of, mean_field, radial_distribution, run, stability
from jaxal.validate.errors import atom_errors, compare
from jaxal.validate.graph import bonds, fragments, same_skeleton

MALONALDEHYDE = Path(__file__).parents[2] / "experiments/malonaldehyde/malonaldehyde.xyz"


def test_errors_against_the_definition():
    rng = np.random.default_rng(0)
    frames = [molecule("H2O"), molecule("H2O"), molecule("CH4"), bulk("C", "diamond", a=3.6)]
    table = (1, 6, 8)
    structure = from_atoms(frames, table)
    size = structure.species.shape[1]
    truth = Label(rng.normal(size=4), rng.normal(size=(4, size, 3)), rng.normal(size=(4, 3, 3)), np.ones(4, bool))
    energy = np.array([0.30, 0.90, 0.10, 0.04])
    force = rng.normal(0, 0.1, (4, size, 3))
    stress = np.full((4, 3, 3), 0.01) * [[1, 2, 3], [2, 4, 5], [3, 5, 6]]
    predicted = Label(truth.energy + energy, truth.force + force, truth.stress + stress, np.ones(4, bool))
    errors = compare(predicted, truth, structure, table)

    per_atom = energy / [3, 3, 5, 2]
    assert errors.energy.mae == pytest.approx(np.mean(per_atom))
    assert errors.energy.rmse == pytest.approx(np.sqrt(np.mean(per_atom**2)))
    assert errors.energy.largest == pytest.approx(0.3)
    # only water comes twice; its mean deviation is 0.6 eV
    assert errors.energy_shifted.count == 2
    assert errors.energy_shifted.mae == pytest.approx(0.1)
    real = np.concatenate([force[row, : len(atoms)] for row, atoms in enumerate(frames)])
    symbols = np.concatenate([atoms.get_chemical_symbols() for atoms in frames])
    assert errors.force.rmse == pytest.approx(np.sqrt(np.mean(real**2)))
    for symbol in "HCO":
        assert errors.elements[symbol].mae == pytest.approx(np.abs(real[symbols == symbol]).mean())
    assert errors.stress.count == 6 and errors.stress.mae == pytest.approx(0.035)  # of the one periodic frame
    assert (errors.structures, errors.compositions) == (4, 3)

    bad = truth._replace(ok=np.array([True, True, False, True]), energy=np.where([0, 0, 1, 0], np.nan, truth.energy))
    assert compare(predicted, bad, structure, table).structures == 3
    assert np.isfinite(compare(predicted, bad, structure, table).energy.rmse)
    length = atom_errors(predicted.force, truth.force, structure.species)
    np.testing.assert_allclose(length[0, :3], np.linalg.norm(force[0, :3], axis=-1))
    assert np.all(length[structure.species < 0] == 0)


def drawn(count: int, scale: float, seed: int = 1):
    """Spreads of three orders and errors that are truly normal with `scale` times the spread."""
    rng = np.random.default_rng(seed)
    spread = np.exp(rng.normal(-2, 0.7, count))
    return spread, np.linalg.norm(rng.normal(size=(count, 3)) * scale * spread[:, None] / np.sqrt(3), axis=1)


def test_calibration_of_honest_spreads():
    count, scale = 20000, 1.7
    spread, error = drawn(count, scale)
    factor = scale * np.sqrt(stats.chi2.ppf(0.9, 3) / 3)  # covers 90 % by construction
    measures = calibration(spread, error, factor=factor, threshold=0.3)
    assert abs(measures.covered - 0.9) < 4 * measures.covered_error
    assert measures.covered_error == pytest.approx(np.sqrt(0.09 / count), rel=0.05)
    assert measures.scale == pytest.approx(scale, rel=0.03)
    assert measures.nll < measures.nll_constant
    assert sum(part.count for part in measures.bins) == count
    for part in measures.bins:
        assert part.error == pytest.approx(scale * part.spread, rel=0.1)
        assert abs(part.covered - 0.9) < 0.04
    # negative log-likelihood against scipy's density, and its minimum
    sigma = measures.scale * spread / np.sqrt(3)
    vectors = np.random.default_rng(3).normal(size=(count, 3))
    vectors *= (error / np.linalg.norm(vectors, axis=1))[:, None]
    assert measures.nll == pytest.approx(-stats.norm.logpdf(vectors, scale=sigma[:, None]).mean())
    for other in (0.95, 1.05):
        assert -stats.norm.logpdf(vectors, scale=other * sigma[:, None]).mean() > measures.nll


def test_rank_measures():
    spread = np.array([1.0, 2, 3, 4, 5, 6])
    assert calibration(spread, spread**3, factor=1.0).spearman == pytest.approx(1)
    assert calibration(spread, -spread + 7, factor=1.0).spearman == pytest.approx(-1)
    assert auroc(spread, spread > 3) == 1
    assert auroc(spread, spread < 3) == 0
    assert auroc(np.ones(6), spread > 3) == 0.5
    assert np.isnan(auroc(spread, spread > 9))
    spread, error = drawn(2000, 1.0)
    blind = calibration(np.random.default_rng(5).permutation(spread), error, factor=1.0)
    assert abs(blind.spearman) < 0.08 and abs(blind.auroc - 0.5) < 0.08
    assert blind.nll > blind.nll_constant > calibration(spread, error, factor=1.0).nll


def test_calibration_of_next_to_nothing():
    for size in (0, 1, 2):
        measures = calibration(np.ones(size), np.zeros(size), factor=1.0)
        assert np.isnan(measures.spearman) and measures.count == size
    assert all(np.isnan(likelihood(np.zeros(3), np.ones(3))))
    assert calibration(np.array([1, np.nan]), np.array([1, 1.0]), factor=1.0).count == 1


def test_proton_transfer_of_malonaldehyde_is_that_of_gfn2():
    tblite = pytest.importorskip("tblite.ase")
    start = read(MALONALDEHYDE)
    end = mirrored_transfer(start, hydrogen=5, donor=4, acceptor=3)
    assert bonds(start)[5, 4] and not bonds(start)[5, 3]
    assert bonds(end)[5, 3] and not bonds(end)[5, 4]
    band = barrier(lambda: tblite.TBLite(method="GFN2-xTB", verbosity=0), start, end, images=7)
    assert band.converged
    assert band.energy / KCAL_PER_MOL == pytest.approx(3.76, abs=0.02)
    assert band.energies[-1] == pytest.approx(0, abs=1e-5)  # degenerate
    np.testing.assert_allclose(band.energies, band.energies[::-1], atol=1e-3)
    assert np.all(np.diff(band.coordinate) > 0)
    assert len(band.images) == 7
    assert json.loads(json.dumps(command.to_json(band)))["images"][0]["symbols"][5] == "H"


def test_mirrored_transfer_out_of_plane_and_its_limits():
    # H5O2+, twisted: two waters share a proton, nearer to the first
    half = np.array([[0, 0, 0], [-0.4, 0.8, 0.35], [-0.4, -0.8, 0.35]])
    other = half @ np.diag([-1, 1, 1]) + [2.5, 0, 0]
    dimer = Atoms("OHHOHHH", np.concatenate([half, other, [[1.05, 0, 0]]]))
    dimer.rotate(33, (1, 2, 3))
    dimer.rattle(0.02, seed=4)
    end = mirrored_transfer(dimer, hydrogen=6, donor=0, acceptor=3)
    assert end.get_distance(6, 3) == pytest.approx(dimer.get_distance(6, 0))
    assert end.get_distance(0, 3) == pytest.approx(dimer.get_distance(0, 3))
    others = np.delete(np.arange(7), 6)
    assert np.abs(end.positions - dimer.positions)[others].max() < 0.2
    before, after = (np.sort(a.get_all_distances().ravel()) for a in (dimer, end))
    np.testing.assert_allclose(before, after)  # the same molecule

    with pytest.raises(InputError, match="does not look alike"):
        mirrored_transfer(molecule("CH3CH2OH"), hydrogen=3, donor=2, acceptor=0)
    with pytest.raises(InputError, match="different indices"):
        mirrored_transfer(dimer, 6, 6, 3)


def test_barrier_refuses_ends_that_do_not_fit():
    with pytest.raises(InputError, match="end"):
        barrier(EMT, molecule("H2O"), molecule("CH4"))
    with pytest.raises(InputError, match="images"):
        barrier(EMT, molecule("H2O"), molecule("H2O"), images=2)


def test_a_band_keeps_fixed_atoms_where_they_are():
    """A copper atom hops on two layers of copper, of which the lower one is held."""
    start = fcc100("Cu", (2, 2, 2), vacuum=6.0)
    add_adsorbate(start, "Cu", 1.7, "hollow")
    lower = FixAtoms([0, 1, 2, 3])
    start.set_constraint(lower)
    end = start.copy()
    end.positions[-1, 0] += start.cell[0, 0] / 2
    band = barrier(EMT, start, end, images=5, fmax=0.05)
    assert band.converged and 0.2 < band.energy < 0.9  # eV
    for image in band.images:
        np.testing.assert_array_equal(image.positions[:4], start.positions[:4])
        assert np.all(np.any(image.positions[4:8] != start.positions[4:8], axis=1))
    end.set_constraint()
    with pytest.raises(InputError, match="end: its fixed atoms are not those of the first"):
        barrier(EMT, start, end)
    end.positions[2] += 0.3
    end.set_constraint(lower)
    with pytest.raises(InputError, match=r"end: its fixed atom 2 is 0\.52 Å from where the first has it"):
        barrier(EMT, start, end)


def test_molecules_may_shuffle_hydrogens_but_not_break():
    start = read(MALONALDEHYDE)
    assert same_skeleton(start, mirrored_transfer(start, 5, 4, 3))
    lost = start.copy()
    lost.positions[7] += [0, -2.0, 0]
    assert not same_skeleton(start, lost)
    pair = molecule("H2O") + molecule("H2O")
    pair.positions[3:] += [0, 0, 5.0]
    assert fragments(pair).tolist() == [0, 0, 0, 1, 1, 1]
    swapped = pair.copy()
    swapped.positions[[1, 4]] = swapped.positions[[4, 1]]
    assert not same_skeleton(pair, swapped)  # as many molecules, other atoms


def field(potential: Potential):
    return mean_field(Committee(potential, 1, "vmap"), {"unused": jnp.zeros(1)})


def test_the_field_is_the_mean_of_the_members():
    def energy(params, structure, near):
        return jnp.sum(params * structure.position**2), structure.position

    frame = jax.device_put(from_atoms([Atoms("Ar2", [[0, 0, 0], [1, 2, 3]])], (18,)))
    near = neighbors.find(neighbors.plan(frame, 1.0), frame)
    pair = Committee(Potential(lambda *_: None, energy, 1.0), 2)
    value, force, _ = mean_field(pair, jnp.array([1.0, 2.0]))(frame, near)
    assert float(value[0]) == pytest.approx(1.5 * 14)
    np.testing.assert_allclose(force[0, 1], [-3, -6, -9], rtol=1e-6)


def test_constant_energy_dynamics_of_a_closed_form():
    grid = 2.866 * np.array([[0, 0, 0], [1, 0, 0], [0.5, 0.87, 0], [0.5, 0.29, 0.82]])
    frames = [Atoms("Cu4", grid, info={}), Atoms("Cu4", grid + np.random.default_rng(1).normal(0, 0.05, grid.shape))]
    frames[1].set_constraint(FixAtoms([0, 1]))
    potential = morse((29,))
    starts = from_atoms(frames, (29,))
    explorer = nve(temperature=600.0, timestep=2.0)
    key = jax.random.key(0)
    trajectory = run(field(potential), potential.cutoff, explorer, starts, key, length=4.0, every=10)
    verdict = stability(trajectory, (29,), starts)
    assert trajectory.structure.position.shape == (2, 200, 4, 3)
    assert verdict.intact.all() and verdict.length == pytest.approx(4.0)
    assert np.all(np.abs(verdict.drift) < 0.2) and np.all(verdict.fluctuation < 1.0)
    # energies belong to their frames, and kinetic energy is exchanged with potential energy
    oracle = field(potential)
    for number in (0, 77, 199):
        frame = jax.tree.map(lambda leaf, number=number: jnp.asarray(leaf[1:, number]), trajectory.structure)
        near = neighbors.find(neighbors.plan(frame, potential.cutoff), frame)
        assert float(oracle(frame, near)[0][0]) == pytest.approx(trajectory.energy[1, number], abs=1e-5)
    assert trajectory.kinetic[1].std() > 10 * (trajectory.energy + trajectory.kinetic)[1].std()
    for number, free in enumerate((4 * 3 - 3, 2 * 3)):
        kelvin = 2 * trajectory.kinetic[number].mean() / (free * BOLTZMANN)
        assert verdict.temperature[number] == pytest.approx(kelvin, rel=1e-5)
    held = trajectory.structure.position[1, :, :2]
    np.testing.assert_array_equal(held, np.broadcast_to(np.asarray(starts.position)[1, :2], held.shape))


def test_breakup_and_heating_are_seen():
    pair = Atoms("Ar2", [[0, 0, 0], [0, 0, 2.0]])

    def apart(structures, near):  # a constant push: the pair flies apart, and energy is not conserved
        push = jnp.array([[[0, 0, -1.0], [0, 0, 1.0]]])
        return jnp.zeros(1), push, jnp.zeros((1, 3, 3))

    starts = from_atoms([pair], (18,))
    explorer = nve(temperature=10.0, timestep=1.0)
    trajectory = run(apart, 5.0, explorer, starts, jax.random.key(1), length=0.4, every=10)
    verdict = stability(trajectory, (18,), starts)
    assert not verdict.intact[0] and 0.05 < verdict.survived[0] < 0.4
    assert verdict.drift[0] > 1e3
    frames = frames_of(trajectory, 0, (18,))
    # x = x0 + a t^2 / 2 with a = F / m on either side
    expected = 2.0 + (1.0 / 39.95) * 0.00964853321 * (trajectory.time[-1] * 1e3) ** 2
    assert frames[-1].get_distance(0, 1) == pytest.approx(expected, rel=0.05)

    broken = run(
        lambda s, n: (jnp.nan * s.cell[:, 0, 0], jnp.nan * s.position, s.cell),
        5.0,
        explorer,
        starts,
        jax.random.key(1),
        length=0.1,
    )
    verdict = stability(broken, (18,), starts)
    assert not verdict.intact[0] and np.isnan(verdict.drift[0])
    with pytest.raises(InputError, match="length"):
        run(apart, 5.0, explorer, starts, jax.random.key(1), length=0.001)


def test_neighbors_that_outgrow_their_room_are_given_more():
    # starts as far apart as the cutoff allows, then collapses: the list must grow, the result must not change
    grid = 5.5 * np.array([(x, y, z) for x in (0, 1) for y in (0, 1) for z in (0, 1)], float)
    starts = from_atoms([Atoms("Ar8", grid, masses=[4.0] * 8)], (18,))
    potential = lennard_jones((18,), sigma=3.0, epsilon=0.3, cutoff=6.0, width=1.0)
    explorer = nve(temperature=5.0, timestep=1.0)
    options = {"length": 0.4, "every": 20}
    tight = run(field(potential), 6.0, explorer, starts, jax.random.key(2), **options, skin=0.3)
    ample = run(field(potential), 6.0, explorer, starts, jax.random.key(2), **options, skin=6.0)
    early = slice(0, 12)  # later the eight atoms are chaotic and rounding decides
    np.testing.assert_allclose(tight.energy[0, early], ample.energy[0, early], atol=2e-3)
    assert tight.energy.min() < -3.0


def test_density_and_radial_distribution():
    # an ideal gas has g = 1 at any distance, also beyond the cell
    rng = np.random.default_rng(7)
    frames = [
        Atoms("Ar30Kr30", positions=rng.uniform(0, 9.0, (60, 3)), cell=[9.0, 9.0, 9.0], pbc=True) for _ in range(32)
    ]
    for pair in (None, ("Ar", "Kr")):
        distribution = radial_distribution(frames, 7.0, width=0.25, pair=pair)
        ideal = 1.0 - (1 / 60 if pair is None else 0.0)  # an atom does not see itself
        use = distribution.radius > 1.0
        pull = (distribution.value - ideal)[use] / distribution.error[use]
        assert np.sqrt(np.mean(pull**2)) < 2.0 and abs(distribution.value[use].mean() - ideal) < 0.03
    crystal = radial_distribution([bulk("Cu", "fcc", a=3.6)] * 3, 5.5, width=0.1)
    shells = crystal.radius[crystal.value > 0]
    np.testing.assert_allclose(shells, [2.55, 3.65, 4.45, 5.05], atol=0.06)
    number = crystal.value * 4 / 3 * np.pi * ((crystal.radius + 0.05) ** 3 - (crystal.radius - 0.05) ** 3) * 4 / 3.6**3
    np.testing.assert_allclose(number[crystal.value > 0], [12, 6, 24, 12])
    mean, error = density([bulk("Si", "diamond", a=5.431)] * 4)
    assert mean == pytest.approx(2.329, abs=2e-3) and error == pytest.approx(0, abs=1e-12)
    with pytest.raises(InputError, match="periodic"):
        radial_distribution([molecule("H2O")], 3.0)
    with pytest.raises(InputError, match="Ne"):
        radial_distribution(frames, 3.0, pair=("Ne", "Ar"))


def test_block_errors_see_correlation():
    rng = np.random.default_rng(3)
    noise = rng.normal(size=(400, 4096))
    white = block_error(noise.T)
    assert np.mean(white) == pytest.approx(1 / np.sqrt(4096), rel=0.1)
    slow = np.repeat(noise[:, :64], 64, axis=1)  # 64 times fewer independent numbers
    assert np.mean(block_error(slow.T)) == pytest.approx(1 / 8, rel=0.1)


@pytest.fixture
def scaled_model(monkeypatch):
    """A committee on the truth times 0.9 and 1.2: all its errors are known."""

    def scaled(table, *, cutoff: float = 6.0) -> Potential:
        form = morse(table, sigma=2.5, cutoff=cutoff, width=1.0)

        def energy(params, structure, near):
            energy, feature = form.energy({}, structure, near)
            return params["factor"] * energy, feature

        return Potential(lambda key, structure, near: {"factor": jnp.ones(())}, energy, cutoff)

    monkeypatch.setitem(registry._table["potential"], "scaled", scaled)
    reference = np.array([-100.0, -200.0])
    params = {"factor": jnp.array([0.9, 1.2])}
    return models.Model(
        "scaled", (("cutoff", 6.0),), (18, 29), params, reference, "float32", ((0, 0),), calibration=THREE
    )


THREE = bound.Calibration(3.0, 0.9, 100, bound.SCORE, "frames of a test")


def labeled_frames(model, count: int = 7):
    rng = np.random.default_rng(9)
    truth = model._replace(params={"factor": jnp.array([1.0])})
    predict = models.predictor(truth)
    frames = []
    for number in range(count):
        atoms = (
            bulk("Cu", "fcc", a=3.5 + 0.03 * number, cubic=True) if number % 2 else bulk("Ar", "sc", a=2.7) * (2, 1, 1)
        )
        atoms.positions += rng.normal(0, 0.08, (len(atoms), 3))
        if number == 0:
            atoms.pbc, atoms.cell = False, None
        prediction = predict(Structure(*(leaf[None] for leaf in from_atoms(atoms, model.table))))
        energy = float(prediction.energy[0, 0]) + model.reference[[model.table.index(z) for z in atoms.numbers]].sum()
        stress = {"stress": np.asarray(prediction.stress[0, 0])} if atoms.pbc.all() else {}
        forces = np.asarray(prediction.force[0, 0], float)
        stress = {key: value[[0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1]] for key, value in stress.items()}
        atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=forces, **stress)
        frames.append(atoms)
    return frames


def test_measure_of_a_model_whose_errors_are_known(scaled_model, tmp_path, monkeypatch):
    frames = labeled_frames(scaled_model)
    write(tmp_path / "data.xyz", frames)
    monkeypatch.setattr(command, "ATOMS_AT_ONCE", 8)  # parts of two, the last one not full
    validation = command.measure(scaled_model, files.read(tmp_path / "data.xyz"), threshold=0.1, source="data.xyz")
    # the mean is 1.05 times the truth, the spread 0.15 times: error / spread = 1/3 everywhere
    forces = np.concatenate([atoms.get_forces().ravel() for atoms in frames])
    assert validation.errors.force.rmse == pytest.approx(0.05 * np.sqrt(np.mean(forces**2)), rel=1e-3)
    alone = dict(zip(scaled_model.table, scaled_model.reference, strict=True))
    atomic = [a.get_potential_energy() / len(a) - alone[a.numbers[0]] for a in frames]
    assert validation.errors.energy.mae == pytest.approx(0.05 * np.mean(np.abs(atomic)), rel=1e-3)
    stress = np.concatenate([a.get_stress() for a in frames if a.pbc.all()])
    assert validation.errors.stress.mae == pytest.approx(0.05 * np.mean(np.abs(stress)), rel=2e-3)
    assert validation.atoms.spearman == pytest.approx(1, abs=5e-3)  # rounding orders near ties
    assert validation.atoms.scale == pytest.approx(1 / 3, rel=1e-2)
    assert validation.structures.covered == 1.0
    assert validation.energies.scale == pytest.approx(1 / 3, rel=1e-2) and validation.components.scale == pytest.approx(
        1 / 3, rel=1e-2
    )
    # scaled, the standard deviations of the components are the errors there are
    assert validation.components.sharpness == pytest.approx(validation.errors.force.rmse, rel=1e-2)
    assert validation.components.crps < validation.errors.force.mae and validation.energies.spearman == pytest.approx(
        1, abs=5e-2
    )
    assert set(validation.elements) == set(validation.errors.elements) and all(
        e.covered == 1 for e in validation.elements.values()
    )
    assert sum(e.count for e in validation.elements.values()) == validation.atoms.count
    np.testing.assert_allclose(validation.worst, validation.estimated / 9, rtol=5e-3)
    text = command.format(validation)
    for word in (
        "data.xyz: 7 structures, 2 compositions",
        "meV/atom",
        "MPa",
        "  Ar ",
        "  Cu ",
        "AUROC",
        "CRPS",
        "bound, Ar, %",
    ):
        assert word in text, text
    parsed = json.loads(json.dumps(command.to_json(validation), allow_nan=False))
    assert parsed["errors"]["force"]["rmse"] == pytest.approx(validation.errors.force.rmse)
    assert parsed["structures"]["nll"] is None or np.isfinite(parsed["structures"]["nll"])
    assert len(parsed["worst"]) == 7

    command.save(tmp_path, validation)
    command.save(tmp_path, barrier={"model": validation.errors.energy})  # what is there stays
    kept = json.loads((tmp_path / "validate.json").read_text())
    assert kept["worst"] == parsed["worst"] and "model" in kept["barrier"]


def test_a_spread_in_closed_form_is_the_one_that_counts(scaled_model, monkeypatch):
    frames = labeled_frames(scaled_model, 3)
    plain = models.predictor(scaled_model)

    def closed(structures):
        prediction = plain(structures)
        rows, atoms = structures.species.shape
        own = jnp.arange(1.0, rows * atoms + 1).reshape(rows, atoms)
        return prediction._replace(energy_spread=jnp.arange(1.0, rows + 1), force_spread=own)

    monkeypatch.setattr(command.models, "predictor", lambda model: closed)
    structures = from_atoms(frames, scaled_model.table)
    predicted = command.predict_all(scaled_model, structures)
    size = structures.species.shape[1]
    real = structures.species >= 0
    np.testing.assert_array_equal(predicted.spread, np.arange(1, 3 * size + 1).reshape(3, size) * real)
    np.testing.assert_array_equal(predicted.energy_spread, [1, 2, 3])
    assert command.measure(scaled_model, [of_atoms(atoms) for atoms in frames]).atoms.count == real.sum()


def test_validate_reads_files_and_names_mistakes(scaled_model, tmp_path):
    models.save(tmp_path / "model.npz", scaled_model)
    write(tmp_path / "data.xyz", labeled_frames(scaled_model, 3))
    validation = command.validate(tmp_path, tmp_path / "data.xyz")
    assert validation.errors.structures == 3 and validation.data.endswith("data.xyz")
    with pytest.raises(InputError, match="no such file"):
        command.validate(tmp_path, tmp_path / "nothing.xyz")
    write(tmp_path / "bare.xyz", molecule("CO"))
    with pytest.raises(InputError):
        command.validate(tmp_path, tmp_path / "bare.xyz")
    charged = labeled_frames(scaled_model, 2)
    charged[1].info["charge"] = 1
    with pytest.raises(InputError, match=r"frame 1: their charge is 1, but the model was trained at 0"):
        command.measure(scaled_model, [of_atoms(atoms) for atoms in charged])
