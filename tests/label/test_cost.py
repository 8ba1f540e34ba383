"""Expected times and the order of labels, against laws and optima that are known."""

import itertools
import math

import numpy as np
import pytest
from ase.build import bulk, molecule

from jaxal.label.cost import expected, finished, order
from jaxal.label.service import label_service
from jaxal.label.task import OPEN, Backend, Result, Task
from jaxal.label.workers.executor import Executor


def carbon(atoms: int, edge: float = 0.0, charge: int = 0) -> Task:
    return Task(np.full(atoms, 6), np.zeros((atoms, 3)), np.eye(3) * edge, np.full(3, edge > 0), charge, 0)


def timings(law, sizes, noise=0.0, seed=0, edge=None):
    rng = np.random.default_rng(seed)
    tasks = [carbon(n, 0.0 if edge is None else edge(n, rng)) for n in sizes]
    return [(task, law(task) * math.exp(noise * rng.normal())) for task in tasks]


def electrons(task):
    return 6.0 * len(task.numbers)


def test_without_data_it_is_the_cube_of_the_electrons():
    tell = expected([])
    assert tell(carbon(20)) / tell(carbon(10)) == pytest.approx(8.0)
    assert tell(carbon(1, charge=5)) / tell(carbon(1, charge=4)) == pytest.approx(1 / 8)
    assert tell(carbon(1, charge=6)) > 0  # a bare nucleus


@pytest.mark.parametrize("power", [1.0, 2.3, 4.0])
def test_it_finds_the_power_of_the_electrons(power):
    known = timings(lambda task: 1e-3 * electrons(task) ** power, [4, 6, 8, 12, 16, 24, 32] * 3, noise=0.1)
    tell = expected(known)
    assert math.log(tell(carbon(32)) / tell(carbon(4))) / math.log(8) == pytest.approx(power, abs=0.15)
    assert tell(carbon(16)) == pytest.approx(1e-3 * 96.0**power, rel=0.15)


@pytest.mark.parametrize("power", [-1.0, 1.0])  # fewer k-points, or more plane waves, in a larger cell
def test_it_finds_the_power_of_the_volume(power):
    def law(task):
        return 2.0 * (electrons(task) / 48) ** 2 * np.linalg.det(task.cell) ** power

    known = timings(law, [8, 8, 8, 16, 16, 32] * 8, 0.1, edge=lambda n, rng: rng.uniform(0.7, 1.4) * n ** (1 / 3) * 3)
    tell = expected(known)
    for task in (carbon(8, 5.0), carbon(8, 7.0), carbon(32, 9.0)):
        assert tell(task) == pytest.approx(law(task), rel=0.25)


def test_a_single_size_tells_the_time_and_leaves_the_power():
    tell = expected([(carbon(10), seconds) for seconds in (2.0, 2.1, 1.9, 2.0)])
    assert tell(carbon(10)) == pytest.approx(2.0, rel=0.03)
    assert tell(carbon(20)) / tell(carbon(10)) == pytest.approx(8.0, rel=0.05)
    assert expected([(carbon(10), 5.0)])(carbon(10)) == pytest.approx(5.0, rel=0.01)


def test_a_few_that_took_a_hundred_times_as_long_do_not_matter():
    known = timings(lambda task: 1e-3 * electrons(task) ** 2, [4, 6, 8, 12, 16, 24, 32] * 4, noise=0.05)
    wrong = [(task, 100 * seconds) if row % 9 == 0 else (task, seconds) for row, (task, seconds) in enumerate(known)]
    clean, robust = expected(known), expected(wrong)
    least_squares = np.polyfit(
        [math.log(electrons(task)) for task, _ in wrong], [math.log(seconds) for _, seconds in wrong], 1
    )
    for n in (4, 12, 32):
        assert robust(carbon(n)) == pytest.approx(clean(carbon(n)), rel=0.2)
        assert math.exp(np.polyval(least_squares, math.log(6 * n))) > 1.4 * clean(carbon(n))  # what it is spared


def test_times_that_are_none_do_no_harm():
    for seconds in (0.0, -1.0, math.nan, math.inf):
        assert expected([(carbon(10), seconds)])(carbon(10)) == expected([])(carbon(10))
    tell = expected([(carbon(2), 1e-9), (carbon(2), 1e9)])
    assert 0 < tell(carbon(1)) < math.inf and 0 < tell(carbon(100_000)) < math.inf


def test_real_times_of_gfn2_predict_one_another():
    from jaxal.label.methods.tblite import tblite

    backend = tblite()
    known = []
    for name in ("H2O", "CH3CH2OH", "C6H6", "C3H8", "CH4", "C4H4O", "C5H5N", "isobutane", "C2H6"):
        atoms = molecule(name)
        for copies in (1, 2, 4):
            position = np.concatenate([atoms.positions + 9.0 * i for i in range(copies)])
            task = Task(np.tile(atoms.numbers, copies), position, *OPEN, 0, 0)
            backend.calculate(task)  # once before, so that nothing is loaded in the time that is taken
            known.append((task, backend.calculate(task).seconds))
    errors = []
    for row, (task, seconds) in enumerate(known):
        errors.append(abs(math.log(expected(known[:row] + known[row + 1 :])(task) / seconds)))
    naive = [abs(math.log(np.median([s for _, s in known]) / seconds)) for _, seconds in known]
    assert np.median(errors) < math.log(2.0) and np.median(errors) < 0.7 * np.median(naive)


# ---------------------------------------------------------------- order


def test_highest_value_first_then_longest():
    assert order([1.0, 3.0, 2.0, 3.0], [9.0, 1.0, 5.0, 2.0], 2) == [3, 1, 2, 0]
    assert order([0.0, math.nan, -math.inf, math.inf], [1.0] * 4, 2) == [3, 0, 2, 1]
    assert order([], [], 2) == []


@pytest.mark.parametrize("slots", [1, 3, 8])
def test_equal_values_keep_their_order_where_it_does_not_matter(slots):
    assert order([0.0] * 3, [1.0, 3.0, 2.0], slots) == [0, 1, 2]


def test_blocks_finish_together_within_grahams_bound():
    rng = np.random.default_rng(0)
    gains = []
    for _ in range(60):
        slots, seconds = int(rng.integers(2, 4)), rng.lognormal(0.0, 1.0, 7)
        rows = order([0.0] * 7, seconds.tolist(), slots)
        assert sorted(rows) == list(range(7))
        best = min(
            max(sum(seconds[i] for i in range(7) if where[i] == slot) for slot in range(slots))
            for where in itertools.product(range(slots), repeat=7)
        )
        ours = finished([seconds[row] for row in rows], slots)
        assert best - 1e-9 <= ours <= (4 / 3 - 1 / (3 * slots)) * best + 1e-9
        gains.append(finished(seconds.tolist(), slots) / ours)
    assert np.mean(gains) > 1.05  # against the order in which they came


def test_a_service_begins_the_longest_first_and_answers_in_order(tmp_path):
    """Cells of another volume, whose times the store of an earlier run knows: larger ones are faster."""
    begun = []
    atoms = bulk("Si", cubic=True)

    def calculate(task: Task) -> Result:
        begun.append(float(np.linalg.det(task.cell)))
        return Result(begun[-1], np.zeros((8, 3)), np.zeros((3, 3)), True, "", 1e6 / begun[-1] ** 2)

    def executor(recipe, timeout) -> Executor:
        waiting = []
        return Executor(
            lambda ticket, task: waiting.append((ticket, calculate(task))),
            lambda patience: [waiting.pop()],
            2,
            lambda: None,
        )

    from jaxal.core import registry
    from jaxal.label.workers.executor import Recipe

    def timed() -> Backend:
        """Takes a time of its own."""
        return Backend(calculate, lambda task: None, "timed", "1")

    class Batch:
        species = np.zeros((6, 8), int)
        charge = spin = np.zeros(6, int)
        mass, fixed, periodic = np.ones((6, 8)), np.zeros((6, 8), bool), np.ones((6, 3), bool)

        def __init__(self, stretch):
            self.cell = np.stack([atoms.cell.array * s for s in stretch])
            self.position = np.stack([atoms.positions * s for s in stretch])

    registry._table["labeler"]["timed"] = timed
    try:
        for stretch in ([1.0, 1.04, 0.98, 1.02, 0.96, 1.06], [1.01, 1.05, 0.99, 1.03, 0.97, 1.07]):
            service = label_service(Recipe("timed", {}), table=[14], store=tmp_path / "x.sqlite", executor=executor)
            begun.clear()
            labels = service.label(Batch(stretch), np.ones(6, bool))  # pyright: ignore[reportArgumentType]
            np.testing.assert_allclose(labels.energy, [np.linalg.det(atoms.cell.array) * s**3 for s in stretch])
            came = [np.linalg.det(atoms.cell.array) * s**3 for s in stretch]
            first = begun == pytest.approx(came)
            assert begun == pytest.approx(sorted(came)) or first  # smallest cell, longest time, first
            service.close()
        assert not first  # the second time it knew
    finally:
        del registry._table["labeler"]["timed"]
