"""What a calculator remembers and shares: its cache, copies, pickles, threads, event loops and other processes."""

import asyncio
import copy
import pickle
import subprocess
import sys
import textwrap
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule
from ase.calculators.calculator import CalculationFailed, PropertyNotImplementedError
from odd_potentials import odd

from jaxal.core import registry
from jaxal.core.types import InputError
from jaxal.deploy import model as models
from jaxal.deploy.calculator import Calculator

STIFFNESS, SPREAD = 2.0, 0.25  # eV/Å^2, of the two members' mean and deviation
ALONE = models.Model("odd", (), (1, 8), np.float32([2.0]), np.array([-13.5, -2000.25]), "float32", ((0, 0),))
PAIR = ALONE._replace(params=np.float32([STIFFNESS - SPREAD, STIFFNESS + SPREAD]))


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    monkeypatch.setitem(registry._table["potential"], "odd", odd)


@pytest.fixture(scope="module")
def shared():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(registry._table["potential"], "odd", odd)
        yield Calculator(PAIR)


def water(shift: float = 0.0) -> Atoms:
    atoms = molecule("H2O")
    atoms.positions[0, 2] += shift
    return atoms


def truth(atoms: Atoms) -> float:
    centered = atoms.positions - atoms.positions.mean(axis=0)
    return 0.5 * STIFFNESS * float((centered**2).sum()) + float(PAIR.reference[[1, 0, 0]].sum())


# ---------------------------------------------------------------- the cache


def test_what_was_refused_leaves_no_results(shared):
    calculator, good, bad = shared.share(), water(), molecule("CH4")
    good.calc = bad.calc = calculator
    good.get_potential_energy()
    with pytest.raises(InputError, match="element C"):
        calculator.calculate(bad)
    assert calculator.results == {} and calculator.atoms is None
    for _ in range(2):
        with pytest.raises(InputError, match="element C"):
            bad.get_potential_energy()
    assert good.get_potential_energy() == pytest.approx(truth(good), abs=1e-4)
    flat = water()
    flat.pbc = [True, True, False]
    with pytest.raises(InputError, match="atoms: periodic along a, b, but"):
        calculator.calculate(flat)
    assert calculator.results == {}
    with pytest.raises(InputError, match="there are none"):
        calculator.calculate(None)


def test_a_failed_calculation_leaves_no_results():
    atoms = water()
    atoms.calc = Calculator(PAIR._replace(params=np.float32([np.nan, 1.0])))
    for _ in range(2):
        with pytest.raises(CalculationFailed):
            atoms.get_potential_energy()
        assert atoms.calc.results == {}


@pytest.mark.parametrize("info", [{"charge": 1, "spin": 1}, {"charge": 2}, {"spin": 2}, {"charge": "much"}])
def test_another_charge_or_spin_is_refused_also_behind_the_cache(shared, info):
    calculator, neutral = shared.share(), water()
    neutral.calc = calculator
    energy = neutral.get_potential_energy()
    ion = neutral.copy()
    ion.info |= info
    ion.calc = calculator
    assert calculator.calculation_required(ion, ["energy"]) and not calculator.calculation_required(neutral, ["energy"])
    with pytest.raises(InputError, match=next(iter(info))) as error:
        ion.get_potential_energy()
    assert "\n" not in str(error.value)
    neutral.info |= {"charge": 0, "spin": 0}
    assert neutral.get_potential_energy() == energy
    neutral.info |= info  # the same object, changed in place
    with pytest.raises(InputError):
        neutral.get_forces()


def test_a_number_of_electrons_that_cannot_have_the_spin_is_refused(shared):
    radical = Atoms("OH", [[0, 0, 0], [0, 0, 0.97]], calculator=shared.share())
    with pytest.raises(InputError, match="trained at charge 0 and spin 0; spin: 0 unpaired electrons are impossible"):
        radical.get_potential_energy()
    radical.calc = Calculator(PAIR._replace(states=((0, 1),)))
    assert np.isfinite(radical.get_potential_energy())
    blind = Calculator(PAIR._replace(electrons=False))  # learned from a closed form
    radical.calc = blind
    assert np.isfinite(radical.get_potential_energy())
    radical.info["spin"] = 1
    with pytest.raises(InputError, match="trained at 0, of structures that did not say theirs; leave it out"):
        radical.get_potential_energy()


def test_stress_of_an_open_structure_costs_nothing_and_keeps_the_results(shared):
    atoms = water()
    atoms.calc = calculator = shared.share()
    energy = atoms.get_potential_energy()
    with pytest.raises(PropertyNotImplementedError, match="no periodic cell"):
        atoms.get_stress()
    assert calculator.results["energy"] == energy
    assert calculator.get_property("stress", atoms, allow_calculation=False) is None


def test_one_member_has_no_spread_to_tell_of():
    atoms = water()
    atoms.calc = calculator = Calculator(ALONE)
    assert atoms.get_potential_energy() == pytest.approx(truth(atoms), abs=1e-4)
    assert set(calculator.results) == {"energy", "free_energy", "forces"}
    for name in ("force_spread", "energy_spread", "estimated_error", "supported"):
        assert name not in calculator.implemented_properties
        with pytest.raises(PropertyNotImplementedError):
            calculator.get_property(name, atoms)
    assert "force_spread" in Calculator.implemented_properties


# ---------------------------------------------------------------- copies


def test_a_deep_copy_shares_the_program_and_nothing_else(shared):
    atoms = water()
    atoms.calc = shared.share()
    energy = atoms.get_potential_energy()
    twin = copy.deepcopy(atoms)
    assert twin.calc is not atoms.calc and twin.calc._predict is atoms.calc._predict
    assert twin.calc.results["forces"] is not atoms.calc.results["forces"]
    assert not twin.calc.calculation_required(twin, ["energy", "forces"])
    twin.positions[0, 2] += 0.3
    assert twin.get_potential_energy() != energy == atoms.get_potential_energy()
    assert copy.copy(atoms.calc).get_potential_energy(atoms) == energy


def test_a_pickle_gives_the_same_bits(shared):
    atoms, wide = water(), molecule("H2O2")
    atoms.calc = calculator = shared.share()
    calculator.get_potential_energy(wide)  # more room for neighbors
    energy, forces = atoms.get_potential_energy(), atoms.get_forces()
    again = pickle.loads(pickle.dumps(calculator))
    assert again.results["energy"] == energy and not again.calculation_required(atoms, ["energy"])
    again.reset()
    assert again.get_potential_energy(atoms) == energy
    np.testing.assert_array_equal(again.get_forces(atoms), forces)
    assert again._predict.specs == calculator._predict.specs
    assert pickle.loads(pickle.dumps(atoms)).get_potential_energy() == energy
    with_jax = Calculator(PAIR._replace(params=jnp.asarray(PAIR.params)))
    assert pickle.loads(pickle.dumps(with_jax)).get_potential_energy(atoms) == energy


# ---------------------------------------------------------------- at the same time


def test_threads_may_share_one_calculator(shared):
    calculator, energies = shared.share(), {}

    def work(number):
        atoms = water(0.05 * number)
        atoms.calc = calculator
        for _ in range(5):
            energies[number] = (atoms.get_potential_energy(), truth(atoms))
            atoms.positions[1, 1] += 0.01

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert len(energies) == 4
    for energy, expected in energies.values():
        assert energy == pytest.approx(expected, abs=1e-4)


def test_an_event_loop_may_use_it(shared):
    async def all_of_them():
        async def energies(number):
            atoms = water(0.05 * number)
            atoms.calc = shared.share()
            direct = atoms.get_potential_energy()
            atoms.calc = shared.share()
            return direct, await asyncio.to_thread(atoms.get_potential_energy)

        return await asyncio.gather(*(energies(number) for number in range(3)))

    for direct, elsewhere in asyncio.run(all_of_them()):
        assert direct == elsewhere


PROCESSES = """
    import multiprocessing, os, sys, threading
    from ase.build import molecule
    from jaxal import Calculator, InputError

    def energy_of_file(path):
        return energy_of(Calculator(path))

    def energy_of(calculator):
        calculator.reset()
        atoms = molecule("H2O")
        atoms.calc = calculator
        return atoms.get_potential_energy()

    def outcome(function, argument):
        try:
            return function(argument)
        except InputError as error:
            return f"refused: {error}"

    if __name__ == "__main__":
        path = sys.argv[1]
        calculator = Calculator(path)
        energy = energy_of(calculator)
        context = multiprocessing.get_context("spawn")
        with context.Pool(2) as pool:
            jobs = [pool.apply_async(outcome, job) for job in ((energy_of_file, path), (energy_of, calculator))]
            assert [job.get(120) for job in jobs] == [energy, energy]
        with calculator._predict._lock, multiprocessing.get_context("fork").Pool(1) as pool:  # held in the child
            for job in ((energy_of_file, path), (energy_of, calculator)):
                answer = pool.apply_async(outcome, job).get(30)
                assert "was forked from one that uses JAX" in answer and "spawn" in answer, answer
"""


@pytest.mark.slow
def test_spawned_processes_give_the_same_bits_and_forked_ones_say_so(tmp_path):
    options = (("cutoff", 3.0), ("channels", 2), ("l_max", 1), ("layers", 1), ("radial_hidden", 0))
    model = ALONE._replace(potential="equivariant", options=options)
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: rng.uniform(0.1, 1.0, x.shape).astype(x.dtype), models.shapes(model, 2))
    models.save(tmp_path / "model.npz", model._replace(params=params))
    (tmp_path / "processes.py").write_text(textwrap.dedent(PROCESSES))
    command = [sys.executable, str(tmp_path / "processes.py"), str(tmp_path / "model.npz")]
    process = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert process.returncode == 0, process.stderr


def test_a_process_forked_before_jax_is_used_is_none_of_those():
    code = """
        import os
        from jaxal.core import devices
        child = os.fork()
        if child == 0:
            devices.refuse_fork()
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
    """
    process = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=60)
    assert process.returncode == 0, process.stderr
