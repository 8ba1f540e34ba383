"""The label store: on the disk when it says so, shared by threads and processes, never paid twice."""

import contextlib
import os
import signal
import sqlite3
import subprocess
import sys
import threading

import numpy as np
import pytest

from jaxal.label.store import summary
from jaxal.label.store.database import label_key, open_store, store_error
from jaxal.label.task import OPEN, LabelError, Result, Task, failed

ME = "method", "code 1.0"
# What another process needs to make tasks and results like ours.
CHILD = """
import os, signal, sys
import numpy as np
from jaxal.label.store.database import open_store
from jaxal.label.task import OPEN, Result, Task
def task(x): return Task(np.array([8, 1, 1]), np.arange(9.0).reshape(3, 3) + x, *OPEN, 0, 0)
def result(e): return Result(e, np.full((3, 3), e), np.zeros((3, 3)), True, "", 0.5)
store = open_store(sys.argv[1])
"""


def water(x=0.0, **changes) -> Task:
    return Task(np.array([8, 1, 1]), np.arange(9.0).reshape(3, 3) + x, *OPEN, 0, 0)._replace(**changes)


def good(energy: float) -> Result:
    return Result(energy, np.full((3, 3), energy), np.eye(3) * energy, True, "", 0.5)


def child(code: str, path, *arguments) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", CHILD + code, str(path), *map(str, arguments)], stdout=subprocess.PIPE
    )


@pytest.fixture
def path(tmp_path):
    return tmp_path / "labels.sqlite"


def test_what_is_put_comes_back_bit_for_bit(path):
    store = open_store(path)
    task = water(np.pi, cell=np.eye(3) * 7.1, charge=-1, spin=1)
    entry = store.put(task, good(-1 / 3), *ME)
    store.close()

    store = open_store(path)
    again = store.get(label_key(task, *ME))
    assert again is not None and (again.row, again.status, again.attempt, again.method) == (1, "done", 1, "method")
    assert again.created == entry.created and again.host == entry.host
    for before, after in zip((*task, *good(-1 / 3)), (*again.task, *again.result), strict=True):
        np.testing.assert_array_equal(before, after)
    again.result.force[0] = 0.0  # a copy, not a view of SQLite's memory
    assert store.get("no such key") is None
    store.close()


def test_the_key_is_the_physics():
    key = label_key(water(), *ME)
    assert key == label_key(water(), *ME)
    assert len(key) == 64
    same = [
        water(1e-7),  # below the rounding
        water(numbers=np.array([8, 1, 1], np.int32)),
        water(position=np.asfortranarray(water().position)),
        water(position=np.where(water().position == 0, -0.0, water().position)),
        water(position=water().position - 1e-9),  # rounds to -0.0 where it was 0.0
        water(cell=-np.zeros((3, 3))),
    ]
    other = [
        water(2e-6),
        water(numbers=np.array([1, 8, 1])),
        water(cell=np.eye(3)),
        water(charge=1),
        water(spin=2),
        water(charge=1, spin=1),
    ]
    assert {label_key(task, *ME) for task in same} == {key}
    keys = [label_key(task, *ME) for task in other] + [label_key(water(), "method2", "code 1.0")]
    keys += [label_key(water(), "method", "code 1.1")]
    assert len({key, *keys}) == len(keys) + 1


def test_the_key_does_not_change_between_versions_of_this_program():
    """A change of this value makes every store out there worthless: raise the schema number with it."""
    assert label_key(water(), *ME) == "b9c8e2ac43dc001ec4e4752565fd3a4013661ea5941fc19a7daa4effb5add0cb"


def test_numbers_are_never_replaced_but_a_failure_is(path):
    store = open_store(path)
    task = water()
    assert store.put(task, failed(task, "no luck"), *ME).status == "failed"
    second = store.put(task, failed(task, "again"), *ME)
    assert (second.row, second.attempt, second.result.reason, second.result.ok) == (1, 2, "again", False)
    third = store.put(task, good(-1.0), *ME)
    assert (third.row, third.attempt, third.status) == (1, 3, "done")
    for late in (good(-2.0), failed(task, "late")):  # another process was first
        assert store.put(task, late, *ME).result.energy == -1.0

    entry = store.put(water(1), good(-3.0), *ME, rejected="a force is too large")
    assert (entry.status, entry.result.ok, entry.result.energy) == ("rejected", False, -3.0)
    assert entry.result.reason == "a force is too large"
    entry = store.put(water(2), failed(water(2), "no luck"), *ME, rejected="a force is too large")
    assert (entry.status, entry.result.reason) == ("failed", "no luck")
    assert store.counts() == {"done": 1, "rejected": 1, "failed": 1}
    store.close()


def test_rows_come_in_the_order_of_insertion(path):
    store = open_store(path)
    for i in range(300):  # more than one page
        store.put(water(i), good(float(i)), *ME) if i % 3 else store.put(water(i), failed(water(i), "x"), *ME)
    store.put(water(0), good(0.0), *ME)  # keeps its place
    entries = list(store.all())
    assert [entry.row for entry in entries] == list(range(1, 301))
    assert [entry.task.position[0, 0] for entry in entries] == list(range(300))
    assert store.counts() == {"done": 201, "rejected": 0, "failed": 99}
    store.close()


def test_not_finite_numbers_are_kept(path):
    store = open_store(path)
    entry = store.put(water(), good(float("nan"))._replace(force=np.full((3, 3), np.inf)), *ME)
    assert np.isnan(entry.result.energy) and np.all(np.isinf(entry.result.force))
    store.close()


def test_a_label_survives_kill_9_right_after_put(path):
    code = "store.put(task(0.0), result(-3.0), 'method', 'code 1.0'); os.kill(os.getpid(), signal.SIGKILL)"
    process = child(code, path)
    assert process.wait(60) == -signal.SIGKILL
    store = open_store(path)
    entry = store.get(label_key(water(), *ME))
    assert entry is not None and entry.result.energy == -3.0
    store.close()
    with sqlite3.connect(path) as plain:
        assert plain.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_put_is_flushed_to_the_disk(path):
    """Write-ahead log with synchronous FULL (2): the log is synced at every commit."""
    opened = []
    connect = sqlite3.connect
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sqlite3, "connect", lambda *a, **k: opened.append(connect(*a, **k)) or opened[-1])
        store = open_store(path)
    assert opened[0].execute("PRAGMA synchronous").fetchone() == (2,)
    assert opened[0].execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert not opened[0].in_transaction
    store.close()


def test_two_processes_and_threads_write_at_once(path):
    """All create the store together, write 40 labels of their own and 40 in common."""
    code = """
for i in range(40):
    store.put(task(100.0 * int(sys.argv[2]) + i), result(float(sys.argv[2])), 'method', 'code 1.0')
    store.put(task(-1.0 - i), result(float(sys.argv[2])), 'method', 'code 1.0')
"""
    processes = [child(code, path, number) for number in (1, 2)]
    store = open_store(path)
    errors = []

    def write(number: int) -> None:
        try:
            for i in range(40):
                store.put(water(100.0 * number + i), good(float(number)), *ME)
                store.put(water(-1.0 - i), good(float(number)), *ME)
                assert store.get(label_key(water(-1.0 - i), *ME)) is not None
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=write, args=(number,)) for number in (3, 4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [process.wait(60) for process in processes] == [0, 0] and not errors
    assert store.counts()["done"] == 5 * 40
    assert all(entry.attempt == 1 for entry in store.all())  # whoever was first stays
    store.close()


def test_what_is_not_a_label_store_is_refused_in_one_line(path, tmp_path):
    text = tmp_path / "notes.txt"
    text.write_text("not a database at all\n" * 200)
    foreign = tmp_path / "foreign.sqlite"
    with sqlite3.connect(foreign) as connection:
        connection.execute("CREATE TABLE other (a)")
    open_store(path).close()
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 99")
    for file, what in (
        (text, "not a label store"),
        (foreign, "not a label store"),
        (path, "schema 99, this one reads 1 to 3; a later jaxal has written it"),
        (tmp_path / "none" / "labels.sqlite", "folder must exist"),
    ):
        with pytest.raises(LabelError, match=what) as caught:
            open_store(file)
        assert str(file) in str(caught.value) and "\n" not in str(caught.value)
    assert text.read_text().startswith("not a database") and os.path.getsize(foreign) > 0


@pytest.mark.parametrize(
    ("pragma", "words"),
    [
        ("query_only = ON", "cannot be written (attempt to write a readonly database); its file and folder must be"),
        ("max_page_count = 1", "database or disk is full; the label store is as it was before"),
    ],
)
def test_what_sqlite_refuses_is_said_in_words(path, pragma, words):
    open_store(path).close()
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute(f"PRAGMA {pragma}")
        with pytest.raises(sqlite3.OperationalError) as error:
            connection.execute("CREATE TABLE large AS SELECT randomblob(100000) AS blob")
    assert str(store_error(error.value, path)).startswith(f"{path}: {words}")


@pytest.mark.parametrize("ask", [summary.listed, summary.cost])
def test_a_store_whose_rows_are_damaged_is_told_in_one_line(path, ask):
    store = open_store(path)
    for x in range(40):
        store.put(water(float(x)), good(float(x)), *ME)
    store.close()
    data = path.read_bytes()
    path.write_bytes(data[:4096] + bytes(len(data) - 4096))  # all pages but the first, which has the schema
    with pytest.raises(LabelError, match=rf"^{path}: not a label store \(DatabaseError: database disk image is malf"):
        ask(path)


def test_a_store_without_labels_has_cost_nothing(path):
    open_store(path).close()
    empty = {"number": 0, "total": 0.0, "hours": 0.0, "mean": None, "median": None, "max": None}
    assert summary.cost(path) == {"store": str(path), "total": empty, "methods": []}
