"""The calculator against ASE's own Morse potential, and in ASE's dynamics, paths and vibrations."""

import subprocess
import sys
import threading

import ase.units
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.calculator import CalculationFailed, PropertyNotImplementedError
from ase.calculators.morse import MorsePotential
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution
from ase.md.verlet import VelocityVerlet
from ase.optimize import BFGS
from ase.vibrations import Vibrations

from jaxal.core import registry
from jaxal.core.types import InputError, Potential
from jaxal.data import neighbors
from jaxal.data.structure import from_atoms
from jaxal.deploy import model as models
from jaxal.deploy.calculator import Calculator, padded_size
from jaxal.potential.pair import morse
from jaxal.uncertainty import bound
from jaxal.validate.barrier import barrier

R0, RHO0, DEPTH = 2.5, 4.0, (0.30, 0.34)  # Å, 1, eV of each member
TABLE = (18, 29)
REFERENCE = np.array([-1000.25, -2000.5])  # eV
BOUND = bound.Calibration(2.5, 0.9, 99, bound.SCORE, "frames of a test")


def depth_morse(table, *, cutoff: float = 9.0) -> Potential:
    """Morse whose depth is a parameter: a committee whose mean and spread are known."""
    form = morse(table, sigma=R0, epsilon=1.0, alpha=RHO0 / R0, cutoff=cutoff, width=1.0)

    def energy(params, structure, near):
        energy, feature = form.energy({}, structure, near)
        return params["depth"] * energy, feature

    return Potential(lambda key, structure, near: {"depth": jnp.ones(())}, energy, cutoff)


@pytest.fixture
def model(monkeypatch):
    monkeypatch.setitem(registry._table["potential"], "depth_morse", depth_morse)
    params = {"depth": np.array(DEPTH, np.float32)}
    return models.Model(
        "depth_morse",
        (("cutoff", 9.0),),
        TABLE,
        params,
        REFERENCE,
        "float32",
        ((0, 0),),
        electrons=False,
        calibration=BOUND,
    )


def oracle(depth: float = float(np.mean(DEPTH))) -> MorsePotential:
    return MorsePotential(epsilon=depth, r0=R0, rho0=RHO0, rcut1=30.0, rcut2=31.0)


def cluster(seed: int = 1, atoms: int = 6) -> Atoms:
    rng = np.random.default_rng(seed)
    grid = 2.4 * np.array([(x, y, z) for x in range(3) for y in range(2) for z in range(2)])[:atoms]
    return Atoms(numbers=[18, 29] * (atoms // 2) + [18] * (atoms % 2), positions=grid + rng.normal(0, 0.1, grid.shape))


def test_energy_forces_and_spread_are_those_of_the_committee(model):
    atoms = cluster()
    atoms.positions += 1e4  # far from the origin, where float32 has a resolution of 1e-3 Å
    atoms.calc = Calculator(model)
    truth = [atoms.copy() for _ in DEPTH]
    for member, depth in zip(truth, DEPTH, strict=True):
        member.calc = oracle(depth)
    energies = np.array([member.get_potential_energy() for member in truth])
    forces = np.array([member.get_forces() for member in truth])
    spread = np.sqrt(forces.var(axis=0).sum(axis=-1))

    assert atoms.get_potential_energy() == pytest.approx(energies.mean() + 3 * REFERENCE.sum(), abs=2e-5)
    assert atoms.get_potential_energy(force_consistent=True) == atoms.get_potential_energy()
    np.testing.assert_allclose(atoms.get_forces(), forces.mean(axis=0), atol=2e-5)
    results = atoms.calc.results
    np.testing.assert_allclose(results["force_spread"], spread, atol=1e-5)
    assert results["energy_spread"] == pytest.approx(energies.std(), abs=1e-5)
    assert results["estimated_error"] == pytest.approx(2.5 * spread.max(), abs=1e-4)
    assert results["forces"].dtype == np.float64
    assert "stress" not in results
    with pytest.raises(PropertyNotImplementedError):
        atoms.get_stress()


def test_double_precision_whatever_the_default(model):
    atoms = cluster()
    atoms.calc = Calculator(model._replace(precision="float64", params={"depth": np.array(DEPTH)}))
    forces = atoms.get_forces()
    atoms.calc = oracle()
    np.testing.assert_allclose(forces, atoms.get_forces(), atol=1e-10)


def test_stress_is_the_derivative_of_the_energy(model):
    atoms = bulk("Cu", "fcc", a=3.4, cubic=True)
    atoms.rattle(0.05, seed=2)
    atoms.calc = Calculator(model)
    assert atoms.get_stress().shape == (6,)
    energy = atoms.get_potential_energy()
    cell, positions, step = atoms.cell.array.copy(), atoms.get_scaled_positions(), 5e-3
    for component, (row, column) in enumerate([(0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1)]):
        values = []
        for sign in (1, -1):
            strain = np.eye(3)
            strain[row, column] += sign * step / 2
            strain[column, row] += sign * step / 2
            moved = Atoms(
                atoms.numbers, scaled_positions=positions, cell=cell @ strain, pbc=True, calculator=atoms.calc
            )
            values.append(moved.get_potential_energy())
        slope = (values[0] - values[1]) / (2 * step) / atoms.get_volume()
        assert atoms.get_stress()[component] == pytest.approx(slope, rel=0.01, abs=2e-4)
    assert atoms.get_potential_energy() == energy  # the very same bits after others were computed in between
    # whole lattice vectors do not matter
    far = atoms.copy()
    far.positions += 40 * far.cell[0]
    far.calc = atoms.calc
    assert far.get_potential_energy() == pytest.approx(energy, abs=1e-4)


@pytest.mark.parametrize("pbc", [(True, True, False), (False, True, False)])
def test_slabs_and_wires_repeat_where_they_say(model, pbc):
    """Against a crystal with much vacuum, wherever the structure stands; a stress needs a volume, and lies in them."""
    atoms = bulk("Cu", "fcc", a=3.4, cubic=True)
    atoms.rattle(0.05, seed=2)
    atoms.pbc = pbc
    atoms.positions[1] += atoms.cell[1]
    atoms.calc = Calculator(model)
    energy, force = atoms.get_potential_energy(), atoms.get_forces()
    other = atoms.copy()
    other.cell, other.pbc, other.calc = np.diag(np.where(pbc, 3.4, 40.0)), True, atoms.calc
    assert energy == pytest.approx(other.get_potential_energy(), abs=1e-4)
    np.testing.assert_allclose(force, other.get_forces(), atol=1e-4)
    stress = atoms.get_stress(voigt=False)
    within = np.outer(pbc, pbc)
    assert np.abs(stress[within]).min() > 1e-4 and np.abs(stress[~within]).max() < 1e-6 * np.abs(stress).max()
    far = atoms.copy()
    far.positions += 40 * far.cell[1] + [0, 0, 300.0]
    far.calc = atoms.calc
    assert far.get_potential_energy() == pytest.approx(energy, abs=1e-4)
    np.testing.assert_allclose(far.get_forces(), force, atol=1e-3)
    far.cell[2] = 0
    assert far.get_potential_energy() == pytest.approx(energy, abs=1e-4) and "stress" not in far.calc.results
    with pytest.raises(PropertyNotImplementedError, match="no periodic cell with a volume"):
        far.get_stress()


def test_changes_are_noticed_and_only_changes(model):
    atoms = cluster()
    atoms.calc = calculator = Calculator(model)
    calls = []
    predict = calculator._predict
    calculator._predict = lambda structure: calls.append(1) or predict(structure)
    first = atoms.get_potential_energy()
    atoms.get_forces()
    assert len(calls) == 1
    atoms.positions[0, 0] += 0.1
    assert atoms.get_potential_energy() != first
    atoms.numbers[0] = 29
    atoms.get_potential_energy()
    atoms.set_cell([30.0, 30.0, 30.0])
    atoms.pbc = True
    atoms.get_stress()
    assert len(calls) == 4


def test_sizes_share_programs():
    sizes = [padded_size(n) for n in range(1, 2000)]
    assert all(size >= n for n, size in enumerate(sizes, 1))
    assert all(size <= max(1.25 * n + 1, n + 3) for n, size in enumerate(sizes, 1))
    assert len(set(sizes)) < 40


def test_number_of_atoms_does_not_change_energies(model):
    calculator = Calculator(model)
    for count in (2, 5, 9, 12):
        atoms = cluster(atoms=count)
        atoms.calc = calculator
        energy = atoms.get_potential_energy() - REFERENCE[[TABLE.index(z) for z in atoms.numbers]].sum()
        atoms.calc = oracle()
        assert energy == pytest.approx(atoms.get_potential_energy(), abs=1e-4)


def test_shared_calculators_in_threads(model):
    calculator = Calculator(model)
    frames = [cluster(seed) for seed in range(4)]
    energies = {}

    def work(number):
        frames[number].calc = calculator.share()
        energies[number] = frames[number].get_potential_energy()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    for number, frame in enumerate(frames):
        frame.calc = oracle()
        assert energies[number] == pytest.approx(frame.get_potential_energy() + 3 * REFERENCE.sum(), abs=1e-4)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda atoms: atoms.set_atomic_numbers([8] * len(atoms)), "element O"),
        (lambda atoms: (atoms.set_cell(np.eye(3)[[0, 0, 2]]), atoms.set_pbc([True, True, False])), "atoms: periodic"),
        (lambda atoms: atoms.info.update(charge=1), "charge"),
        (lambda atoms: atoms.info.update(spin=2), "spin"),
    ],
)
def test_mistakes_are_named(model, change, word):
    atoms = cluster()
    atoms.cell = [20.0, 20.0, 20.0]
    change(atoms)
    atoms.calc = Calculator(model)
    with pytest.raises(InputError, match=word) as error:
        atoms.get_potential_energy()
    assert "\n" not in str(error.value)


def test_no_finite_number_is_an_error(model):
    atoms = cluster()
    atoms.calc = Calculator(model._replace(params={"depth": np.array([np.nan, 1.0], np.float32)}))
    with pytest.raises(CalculationFailed):
        atoms.get_forces()
    with pytest.raises(InputError):
        Calculator("/nowhere/at/all.npz")


def test_drives_dynamics(model):
    atoms = cluster()
    atoms.calc = Calculator(model)
    BFGS(atoms, logfile=None).run(fmax=0.01, steps=200)
    MaxwellBoltzmannDistribution(atoms, temperature_K=300, rng=np.random.default_rng(3))
    start = atoms.get_total_energy()
    VelocityVerlet(atoms, 2.0 * ase.units.fs).run(200)
    assert atoms.get_kinetic_energy() > 0.02
    assert atoms.get_total_energy() == pytest.approx(start, abs=2e-3)


def test_drives_vibrations(model, tmp_path):
    pair = Atoms("Ar2", [[0, 0, 0], [0, 0, R0 + 0.1]])
    pair.calc = Calculator(model)
    BFGS(pair, logfile=None).run(fmax=1e-4)
    vibrations = Vibrations(pair, name=str(tmp_path / "vib"))
    vibrations.run()
    # harmonic: k = 2 D alpha^2, reduced mass m / 2
    stiffness = 2 * np.mean(DEPTH) * (RHO0 / R0) ** 2
    mass = pair.get_masses()[0] / 2
    wavenumber = np.sqrt(stiffness / mass) * ase.units._hbar * 1e10 / np.sqrt(ase.units._e * ase.units._amu)
    assert vibrations.get_energies()[-1].real == pytest.approx(wavenumber, rel=0.01)


def test_drives_a_path(model):
    # the four atoms of a tetrahedron change hands through a flat rhombus
    side = R0 * np.array([[0, 0, 0], [1, 0, 0], [0.5, np.sqrt(3) / 2, 0], [0.5, np.sqrt(3) / 6, np.sqrt(2 / 3)]])
    start, end = Atoms("Ar4", side), Atoms("Ar4", side * [1, 1, -1])
    calculator = Calculator(model)
    band = barrier(calculator.share, start, end, images=5, fmax=0.02)
    truth = barrier(oracle, start, end, images=5, fmax=0.02)
    assert band.converged and truth.converged
    assert truth.energy > 0.1
    assert band.energy == pytest.approx(truth.energy, abs=1e-3)
    assert all(image.calc is None for image in band.images)


def test_a_file_is_enough_and_no_training_code_is_imported(tmp_path):
    options = (("cutoff", 3.5), ("channels", 4), ("l_max", 1), ("layers", 1))
    table = (1, 8)
    model = models.Model("equivariant", options, table, {}, np.array([-13.0, -430.0]), "float32", ((0, 0),))
    potential = models.potential(model)
    atoms = Atoms("OHH", [[0, 0, 0.1], [0, 0.76, -0.47], [0, -0.76, -0.47]])
    structure = from_atoms(atoms, table)
    near = neighbors.build(neighbors.plan(structure, potential.cutoff), structure)
    init = jax.jit(jax.vmap(potential.init, (0, None, None)))
    params = init(jax.random.split(jax.random.key(0), 2), structure, near)
    model = model._replace(params=params)
    atoms.calc = Calculator(model)
    energy, forces = atoms.get_potential_energy(), atoms.get_forces()

    models.save(tmp_path / "model.npz", model)
    code = f"""
import sys
from ase import Atoms
from jaxal import Calculator
energies = []
for path in ({str(tmp_path)!r}, {str(tmp_path / "model.npz")!r}):
    atoms = Atoms("OHH", [[0, 0, 0.1], [0, 0.76, -0.47], [0, -0.76, -0.47]], calculator=Calculator(path))
    energies.append((atoms.get_potential_energy(), *atoms.get_forces().ravel()))
assert not {{"jaxal.train", "optax", "tblite", "orbax", "pyscf"}} & set(sys.modules), sorted(sys.modules)
assert energies[0] == energies[1]
print(*map(repr, map(float, energies[0])))
"""
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert process.returncode == 0, process.stderr
    values = np.array(process.stdout.split(), float)
    assert values[0] == pytest.approx(energy, abs=1e-5)
    np.testing.assert_allclose(values[1:].reshape(3, 3), forces, atol=1e-5)
