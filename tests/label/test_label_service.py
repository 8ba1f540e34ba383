"""Labels as the program sees them: from the store first, accepted, relative, and never an exception."""

import sqlite3
import sys
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase.build import molecule
from structures import plain

import jaxal.label.methods.tblite  # registers
from jaxal.core.types import Structure
from jaxal.label.service import label_service
from jaxal.label.task import OPEN, Enough, LabelError, Task
from jaxal.label.workers.executor import Recipe
from jaxal.program.callback import host_label

TABLE = (1, 6, 8)
REFERENCE = (-10.0, -200.0, -400.0)  # eV


def batch_of(count=3, padded=2, dtype=np.float32, charge=0, spin=0) -> Structure:
    """Rattled water in arrays with room for more atoms; padding holds garbage."""
    atoms = molecule("H2O")
    n = 3 + padded
    position = np.full((count, n, 3), 1e6, dtype)
    rattle = np.random.default_rng(0).normal(size=(count, 3, 3)) * 0.03
    position[:, :3] = atoms.positions + rattle
    species = np.full((count, n), -1, np.int32)
    species[:, :3] = [2, 0, 0]
    electrons = (np.full(count, charge, np.int32), np.full(count, spin, np.int32))
    return plain(position, species, np.zeros((count, 3, 3), dtype), *electrons)  # pyright: ignore


@pytest.fixture
def open_service(tmp_path):
    opened = []

    def make(labeler=None, **options):
        settings = {"table": TABLE, "store": tmp_path / "labels.sqlite", "reference": REFERENCE} | options
        opened.append(label_service(labeler or Recipe("tblite", {}), **settings))
        return opened[-1]

    yield make
    for service in opened:
        service.close()


def count_calls(folder) -> int:
    path = folder / "calls"
    return len(path.read_text().splitlines()) if path.exists() else 0


# ---------------------------------------------------------------- service


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_labels_are_relative_padded_and_of_the_dtype_of_the_positions(open_service, workers, dtype):
    service, batch = open_service(workers=workers), batch_of(dtype=dtype)
    service.check(batch)
    labels = service.label(batch, np.array([True, False, True]))
    assert labels.energy.dtype == labels.force.dtype == labels.stress.dtype == dtype and labels.ok.dtype == bool
    assert labels.ok.tolist() == [True, False, True]
    assert labels.energy[1] == 0 and not labels.force[1].any() and not labels.force[:, 3:].any()
    backend = jaxal.label.methods.tblite.tblite()
    for i in (0, 2):
        position = np.asarray(batch.position[i, :3], np.float64)
        plain = backend.calculate(Task(np.array([8, 1, 1]), position, *OPEN, 0, 0))
        assert labels.energy[i] == dtype(plain.energy - (-420.0))  # subtracted before the cast
        np.testing.assert_array_equal(labels.force[i, :3], plain.force.astype(dtype))
    records = service.drain()
    # Rows are in the order in which the labels landed.
    assert sorted((r.row, r.ok, r.from_store) for r in records) == [(1, True, False), (2, True, False)]
    assert service.drain() == [] and all(r.seconds > 0 for r in records)


def test_a_replay_pays_for_nothing_and_gives_the_same_bits(open_service, faults, tmp_path):
    recipe, batch, everything = Recipe("faulty", {"folder": str(tmp_path)}), batch_of(), np.ones(3, bool)
    service = open_service(recipe)
    first = service.label(batch, everything)
    assert count_calls(tmp_path) == 3
    service.label(batch, everything)
    service.close()
    again = open_service(recipe, workers=1)  # a new process after a crash
    for before, after in zip(first, again.label(batch, everything), strict=True):
        np.testing.assert_array_equal(before, after)
    assert count_calls(tmp_path) == 3
    assert [r.from_store for r in again.drain()] == [True] * 3
    assert again.store.counts() == {"done": 3, "rejected": 0, "failed": 0}


def test_the_same_structure_twice_in_a_batch_is_paid_once(open_service, faults, tmp_path):
    batch = jax.tree.map(lambda a: np.repeat(a[:1], 3, axis=0), batch_of())
    service = open_service(Recipe("faulty", {"folder": str(tmp_path)}))
    labels = service.label(batch, np.ones(3, bool))
    assert labels.ok.all() and count_calls(tmp_path) == 1 and len(service.drain()) == 3


@pytest.mark.parametrize("workers", [0, 1])
def test_every_kind_of_failure_is_data(open_service, faults, tmp_path, workers):
    service = open_service(Recipe("faulty", {"folder": str(tmp_path)}), workers=workers, timeout=20.0)
    expected = {
        faults.RAISES: "breaks its promise",
        faults.NOT_FINITE: "energy is not finite",
        faults.BLOWS_UP: "above max_force",
    }
    batch = batch_of(len(expected) + 1)._replace(charge=np.array([*expected, faults.GOOD]))  # pyright: ignore
    labels = service.label(batch, np.ones(len(expected) + 1, bool))
    assert labels.ok.tolist() == [False] * len(expected) + [True]
    assert not labels.energy[:-1].any() and not labels.force.any()
    for record, what in zip(service.drain(), expected.values(), strict=False):
        assert what in record.reason and record.row > 0
    assert service.store.counts() == {"done": 1, "rejected": 2, "failed": 1}


def test_a_failure_is_remembered_and_can_be_retried(open_service, faults, tmp_path):
    recipe, batch, mask = Recipe("faulty", {"folder": str(tmp_path)}), batch_of(1, charge=5), np.ones(1, bool)
    batch = batch._replace(charge=np.array([faults.RAISES]))  # pyright: ignore
    for retry, calls in ((False, 1), (False, 1), (True, 2)):
        service = open_service(recipe, retry_failed=retry)
        assert not service.label(batch, mask).ok.any()
        assert count_calls(tmp_path) == calls
        service.close()
    (entry,) = open_service(recipe).store.all()
    assert entry.attempt == 2


def test_other_caps_judge_the_stored_numbers_anew(open_service, faults, tmp_path):
    recipe, mask = Recipe("faulty", {"folder": str(tmp_path)}), np.ones(1, bool)
    batch = batch_of(1)._replace(charge=np.array([faults.BLOWS_UP]))  # pyright: ignore
    for caps, ok in (({}, False), ({"max_force": np.inf, "net_force": np.inf}, True), ({}, False)):
        service = open_service(recipe, **caps)
        assert service.label(batch, mask).ok.tolist() == [ok]
        assert [entry.status for entry in service.store.all()] == ["rejected"]  # by who calculated it
        service.close()
    assert count_calls(tmp_path) == 1


def test_runs_with_other_caps_share_a_store_and_each_has_its_own_verdict(open_service, faults, tmp_path):
    recipe, every = Recipe("faulty", {"folder": str(tmp_path)}), np.ones(6, bool)
    batch = batch_of(6)._replace(charge=np.array(3 * [faults.BLOWS_UP, faults.GOOD]))  # pyright: ignore
    strict, lax = open_service(recipe), open_service(recipe, max_force=np.inf, net_force=np.inf)
    verdicts: dict[str, list[list[bool]]] = {"strict": [], "lax": []}

    def work(name, service, order):
        for _ in range(5):
            shuffled = jax.tree.map(lambda a: a[order], batch)
            verdicts[name].append(service.label(shuffled, every).ok[np.argsort(order)].tolist())

    jobs = (("strict", strict, np.arange(6)), ("lax", lax, np.arange(6)[::-1]))
    threads = [threading.Thread(target=work, args=job) for job in jobs]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    before = [(entry.status, entry.result.reason) for entry in strict.store.all()]
    assert verdicts == {"strict": 5 * [3 * [False, True]], "lax": 5 * [6 * [True]]}
    assert all(record.ok for record in lax.drain()) and not all(record.ok for record in strict.drain())
    lax.label(batch, every)
    strict.label(batch, every)
    assert [(entry.status, entry.result.reason) for entry in lax.store.all()] == before  # nobody changes a row


def test_impossible_electrons_fail_and_are_told_by_check(open_service):
    service, batch = open_service(), batch_of(1, charge=1, spin=0)
    with pytest.raises(LabelError, match="9 electrons"):
        service.check(batch)
    assert not service.label(batch, np.ones(1, bool)).ok.any()
    assert service.drain()[0].reason.startswith("spin: 0 unpaired")


def test_a_store_that_fails_gives_no_label_but_no_exception_either(open_service):
    service = open_service()
    service.store.close()
    labels = service.label(batch_of(2), np.ones(2, bool))
    assert not labels.ok.any()
    assert all("closed database" in record.reason and record.row == 0 for record in service.drain())


def test_mistakes_of_the_user_are_one_line(open_service, tmp_path):
    for options, what in (
        ({"reference": (1.0,)}, "reference"),
        ({"labeler": jaxal.label.methods.tblite.tblite(), "workers": 1}, r"label\.workers"),
        ({"store": tmp_path / "none" / "x.sqlite"}, "folder must exist"),
    ):
        with pytest.raises(LabelError, match=what):
            open_service(**options)


@pytest.mark.parametrize("workers", [0, 2])
def test_once_the_store_fails_nothing_more_is_paid_for(open_service, faults, tmp_path, workers):
    service = open_service(Recipe("faulty", {"folder": str(tmp_path)}), workers=workers)
    assert not service.trouble()
    with sqlite3.connect(tmp_path / "labels.sqlite") as connection:
        full = "SELECT RAISE(ABORT, 'database or disk is full')"
        connection.execute(f"CREATE TRIGGER full BEFORE INSERT ON label BEGIN {full}; END")
    answers = [service.label(batch_of(10), np.ones(10, bool)) for _ in range(2)]
    assert not any(answer.ok.any() for answer in answers)
    assert count_calls(tmp_path) <= max(1, workers)
    assert "label store" in service.trouble() and "disk is full" in service.trouble()


@pytest.mark.parametrize("workers", [0, 2])
def test_told_to_end_it_begins_nothing_more_and_keeps_what_was_begun(open_service, faults, tmp_path, workers):
    calls = []

    def enough() -> bool:  # holds from the third time on
        calls.append(None)
        return len(calls) > 2

    recipe = Recipe("faulty", {"folder": str(tmp_path)})
    service = open_service(recipe, workers=workers, enough=enough)
    with pytest.raises(Enough):
        service.label(batch_of(10), np.ones(10, bool))
    begun = count_calls(tmp_path)
    assert 2 <= begun <= 4 and service.store.counts()["done"] == begun
    again = open_service(recipe).label(batch_of(10), np.ones(10, bool))
    assert again.ok.all() and count_calls(tmp_path) == 10  # none is paid twice


# ---------------------------------------------------------------- bridge


def program(label, every=3):
    """Ten steps; at every third one the labels of structures 0 and 2 are asked for."""

    def run(structures):
        def step(carry, i):
            moved = structures._replace(position=structures.position * (1 + 1e-3 * i))
            wanted = jnp.array([True, False, True])

            def ask():
                return host_label(label, moved, wanted)

            def pass_by():
                return jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(ask))

            labels = jax.lax.cond(i % every == 0, ask, pass_by)
            return carry + labels.energy.sum(), labels.ok

        return jax.lax.scan(step, jnp.zeros(()), jnp.arange(10))

    return jax.jit(run)


def test_the_callback_fires_exactly_when_asked_and_once_in_the_program(open_service):
    service, calls = open_service(), []

    def label(batch, wanted):
        assert all(type(array) is np.ndarray for array in (*batch, wanted))  # nothing of JAX
        calls.append(float(np.max(np.abs(batch.position[0, 0] / batch_of().position[0, 0]))))
        return service.label(batch, wanted)

    run, structures = program(label), jax.device_put(batch_of())
    assert str(jax.make_jaxpr(run)(structures)).count("io_callback[") == 1 and not calls
    _, ok = jax.block_until_ready(run(structures))
    assert len(calls) == 4 and calls == sorted(calls)  # ordered
    assert np.asarray(ok).tolist() == [[i % 3 == 0, False, i % 3 == 0] for i in range(10)]
    assert len(service.drain()) == 8
    jax.block_until_ready(run(structures))
    assert all(record.from_store for record in service.drain())


def test_labels_through_the_bridge_are_those_of_the_service(open_service):
    service, batch = open_service(), batch_of()
    wanted = np.array([True, True, False])
    through = jax.jit(lambda s, w: host_label(service.label, s, w))(batch, wanted)
    for a, b in zip(through, service.label(batch, wanted), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


def test_the_dtype_follows_the_positions_in_float64(open_service):
    service = open_service()
    with jax.enable_x64(True):
        labels = jax.jit(lambda s: host_label(service.label, s, jnp.ones(3, bool)))(batch_of(dtype=np.float64))
        assert labels.energy.dtype == labels.force.dtype == jnp.float64 and bool(labels.ok.all())


def test_a_labeler_that_raises_or_answers_nonsense_does_not_end_the_program(caplog):
    def raises(batch, wanted):
        raise RuntimeError("power cut")

    def wrong(batch, wanted):
        return np.zeros(1), np.zeros(1), np.zeros(1), np.ones(1, bool)

    for label, what in ((raises, "power cut"), (wrong, "answered with shape")):
        energy, ok = program(label)(jax.device_put(batch_of()))
        assert float(energy) == 0.0 and not np.asarray(ok).any()
        assert what in caplog.text


def test_large_arrays_reach_the_host_on_one_core():
    """Where the runtime has one thread, waiting for a JAX array inside the callback could wait forever."""
    import subprocess

    code = """
import os
os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[0]})
import jax, jax.numpy as jnp, numpy as np
from jaxal.program.callback import host_label
from jaxal.core.types import Structure
n = 20000
def label(batch, wanted):
    return batch.position[:, 0, 0], batch.position * 2, batch.cell, wanted
@jax.jit
def run(x):
    def step(x, _):
        free = jnp.ones((4, n)), jnp.zeros((4, n), bool)
        cell = jnp.ones((4, 3, 3)), jnp.ones((4, 3), bool)
        s = Structure(jnp.sin(x), jnp.zeros((4, n), int), *cell, *free, *jnp.zeros((2, 4), int))
        return host_label(label, s, jnp.ones(4, bool)).force, None
    return jax.lax.scan(step, x, length=20)[0]
print(run(jnp.ones((4, n, 3))).sum())
"""
    assert subprocess.run([sys.executable, "-c", code], timeout=100, capture_output=True).returncode == 0
