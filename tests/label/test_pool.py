"""The worker pool: workers die, hang and spawn, and every task still gets its answer, in order."""

import os
import pickle
import signal
import sys
import threading
import time
from multiprocessing import Pipe
from pathlib import Path

import numpy as np
import pytest
from processes import gone, wait_for

from jaxal.core import registry
from jaxal.label.task import OPEN, LabelError, Result, Task, packed, unpacked
from jaxal.label.workers.executor import Recipe, run_all
from jaxal.label.workers.pool import open_pool
from jaxal.label.workers.worker import serve


@pytest.fixture
def pool_of(faults, tmp_path):
    pools = []

    def make(workers=1, timeout=None, **options):
        pools.append(open_pool(Recipe("faulty", {"folder": str(tmp_path), **options}), workers, timeout))
        return pools[-1]

    yield make
    for pool in pools:
        pool.close()


def tasks_of(*behaviors: int) -> list[Task]:
    return [Task(np.array([1]), np.full((1, 3), float(i)), *OPEN, b, 0) for i, b in enumerate(behaviors)]


def run(pool, tasks):
    landed = {}
    results = run_all(pool, tasks, landed.__setitem__)
    assert landed == dict(enumerate(results))
    return results


def test_results_come_in_the_order_of_the_tasks_from_several_workers(pool_of, faults, tmp_path):
    pool = pool_of(workers=2)
    for _ in range(2):
        results = run(pool, tasks_of(*[faults.GOOD] * 8))
        assert [result.energy for result in results] == [3.0 * i for i in range(8)]
    assert run(pool, []) == []
    pids = {line.split()[1] for line in (tmp_path / "calls").read_text().splitlines()}
    assert 1 <= len(pids) <= 2 and str(os.getpid()) not in pids


def test_a_worker_begins_nothing_new_before_its_result_is_handed_out(pool_of, faults, tmp_path):
    """What is handed out is committed before more is asked for: a kill loses one calculation of each worker at most."""

    pool, landed = pool_of(workers=2), 0
    run(pool, tasks_of(*[faults.GOOD] * 8))  # both workers have started

    def begun() -> int:
        return len((tmp_path / "calls").read_text().splitlines()) - 8

    for ticket, task in enumerate(tasks_of(*[faults.GOOD] * 8)):
        pool.submit(ticket, task)
        time.sleep(0.05)  # enough for several
    assert begun() <= 2
    end = time.monotonic() + 30
    while landed < 8 and time.monotonic() < end:
        landed += len(pool.landed(1.0))
        time.sleep(0.05)  # in which they are committed
        assert begun() <= landed + 2
    assert landed == begun() == 8


def test_workers_never_load_jax(pool_of, faults):
    (result,) = run(pool_of(), tasks_of(faults.HAS_JAX))
    assert result.ok and result.energy == 0.0


def test_a_dead_worker_is_replaced_and_its_task_tried_once_more(pool_of, faults, tmp_path):
    results = run(pool_of(), tasks_of(faults.GOOD, faults.DIES_ONCE, faults.DIES, faults.GOOD))
    assert [result.ok for result in results] == [True, True, False, True]
    assert "the worker died (signal SIGKILL)" in results[2].reason
    calls = [int(line.split()[0]) for line in (tmp_path / "calls").read_text().splitlines()]
    assert calls.count(faults.DIES) == 2 and calls.count(faults.DIES_ONCE) == 2 and calls.count(faults.GOOD) == 2


def test_kill_9_from_outside_in_the_middle_of_a_calculation(pool_of, faults, tmp_path):
    pool = pool_of()
    results = []
    thread = threading.Thread(target=lambda: results.extend(run(pool, tasks_of(faults.HANGS, faults.GOOD))))
    thread.start()
    for _ in range(2):  # the first life, and the second
        first = int(wait_for(tmp_path / "calls").split()[-1])
        (tmp_path / "calls").unlink()
        os.kill(first, signal.SIGKILL)
    thread.join(20)
    assert [result.ok for result in results] == [False, True]


def test_what_a_dying_worker_said_is_in_the_reason(pool_of, faults):
    (result,) = run(pool_of(), tasks_of(faults.CRIES))
    assert result.reason == "the worker died (exit status 3): out of memory in block 7"


def test_a_timeout_ends_the_calculation_and_everything_it_started(pool_of, faults, tmp_path):
    start = time.monotonic()
    results = run(pool_of(timeout=0.5), tasks_of(faults.SPAWNS, faults.GOOD))
    assert [result.ok for result in results] == [False, True]
    assert results[0].reason == "timeout: the calculation took more than 0.5 s"
    assert 0.5 <= results[0].seconds < 2.0 and time.monotonic() - start < 10.0
    assert gone(int((tmp_path / "child").read_text()))


def test_the_start_of_a_worker_does_not_count_as_calculation(pool_of, faults):
    """Python and numpy take longer to load than this timeout."""
    (result,) = run(pool_of(timeout=0.05), tasks_of(faults.GOOD))
    assert result.ok


def test_an_exception_of_the_backend_ends_the_worker_not_the_pool(pool_of, faults):
    results = run(pool_of(), tasks_of(faults.RAISES, faults.GOOD))
    assert [result.ok for result in results] == [False, True]
    assert "breaks its promise" in results[0].reason and "\n" not in results[0].reason


def test_a_backend_that_cannot_be_built_says_why(pool_of, faults):
    results = run(pool_of(build_error="1"), tasks_of(faults.GOOD, faults.GOOD))
    assert [result.ok for result in results] == [False, False]
    assert results[0].reason == "the worker cannot build faulty: RuntimeError: no license"


def test_close_ends_a_running_calculation(pool_of, faults, tmp_path):
    pool = pool_of()
    errors = []

    def calculate():
        try:
            run(pool, tasks_of(faults.HANGS))
        except LabelError as error:
            errors.append(str(error))

    thread = threading.Thread(target=calculate)
    thread.start()
    worker = int(wait_for(tmp_path / "calls").split()[1])
    pool.close()
    thread.join(10)
    assert errors == ["the executor is closed"] and gone(worker)
    with pytest.raises(LabelError, match="closed"):
        run(pool, tasks_of(faults.GOOD))


def test_after_an_error_of_the_caller_nothing_is_at_work(pool_of, faults, tmp_path):
    pool = pool_of(workers=2)

    def landed(index, result):
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        run_all(pool, tasks_of(faults.HANGS, faults.GOOD), landed)
    assert all(gone(int(line.split()[1])) for line in (tmp_path / "calls").read_text().splitlines())
    with pytest.raises(LabelError, match="closed"):
        run(pool, tasks_of(faults.GOOD))


def test_workers_end_when_the_program_is_killed(faults, tmp_path):
    import subprocess

    code = (
        "import sys, numpy as np, label_faults; from jaxal.label.workers.pool import Recipe, open_pool;"
        "from jaxal.label.workers.executor import run_all;"
        "from jaxal.label.task import OPEN, Task; pool = open_pool(Recipe('faulty', {'folder': sys.argv[1]}), 1);"
        f"run_all(pool, [Task(np.array([1]), np.zeros((1, 3)), *OPEN, {faults.SPAWNS}, 0)], print)"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    program = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], env=environment)
    child = int(wait_for(tmp_path / "child"))
    worker = int((tmp_path / "calls").read_text().split()[1])
    program.kill()
    program.wait()
    assert gone(worker) and gone(child)


def test_the_worker_protocol(faults, tmp_path):
    """The same function as in a worker process, here in a thread."""
    options = {"folder": str(tmp_path)}
    for greeting, answer in (
        (("label_faults", "faulty", options, []), ""),
        (("label_faults", "faulty", {"unknown": 1}, []), "TypeError"),
        (("no_such_module", "faulty", options, []), "ModuleNotFoundError"),
    ):
        ours, theirs = Pipe()
        thread = threading.Thread(target=serve, args=(theirs,))
        thread.start()
        ours.send_bytes(packed(greeting))
        assert unpacked(ours.recv_bytes()).startswith(answer)
        if not answer:
            ours.send_bytes(packed(tasks_of(faults.GOOD)[0]))
            assert Result(*unpacked(ours.recv_bytes())).ok
        ours.close()
        thread.join(10)
        assert not thread.is_alive()


def test_messages_keep_every_bit_and_make_nothing_but_data():
    task = Task(np.array([8, 1]), np.random.default_rng(0).normal(size=(2, 3)), *OPEN, -1, 2)
    for sent, got in zip(task, Task(*unpacked(packed(task))), strict=True):
        np.testing.assert_array_equal(got, sent)
        assert np.asarray(got).dtype == np.asarray(sent).dtype
    options = {"path": Path("a/b"), "nested": {"x": [1, 2.5, None, True]}, 3: "three"}
    assert unpacked(packed(options)) == options | {"path": "a/b"}
    with pytest.raises(TypeError, match="cannot be sent"):
        packed(object())
    with pytest.raises(ValueError):
        unpacked(pickle.dumps(task))


def test_a_labeler_of_a_script_is_refused(monkeypatch):
    monkeypatch.setitem(registry._table, "labeler", dict(registry._table["labeler"]))

    def mine():
        """Mine."""

    mine.__module__ = "__main__"
    registry.register("labeler")(mine)
    with pytest.raises(LabelError, match=r"label\.workers: .*part of a script"):
        open_pool(Recipe("mine", {}), 1)


def test_real_labels_from_workers_are_those_of_this_process():
    from ase.build import molecule

    import jaxal.label.methods.tblite  # registers

    atoms = molecule("CH3CH2OH")
    tasks = [Task(atoms.numbers, atoms.positions * s, *OPEN, 0, 0) for s in (1.0, 1.02)]
    pool = open_pool(Recipe("tblite", {}), 1, timeout=60.0)
    there = run(pool, tasks)
    pool.close()
    here = [jaxal.label.methods.tblite.tblite().calculate(task) for task in tasks]
    for a, b in zip(there, here, strict=True):
        assert a.ok and a.energy == b.energy
        np.testing.assert_array_equal(a.force, b.force)
