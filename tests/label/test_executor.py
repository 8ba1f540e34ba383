"""What every executor promises, and what those that outlive their workers do when these are lost."""

import math
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from jaxal.label.task import OPEN, Enough, LabelError, Result, Task
from jaxal.label.workers import cluster
from jaxal.label.workers.executor import Executor, Recipe, Setting, in_process, run_all, shared_executor
from jaxal.label.workers.pool import local, open_pool

pytest.importorskip("parsl", reason="Parsl is not installed: pip install '.[cluster]'")
EXECUTORS = ["in_process", "pool", "parsl_local"]
ONCE = ["in_process", "pool", pytest.param("parsl_local", marks=pytest.mark.slow)]  # its pool is that of a process
OUTSIDE = ["pool", "parsl_local"]  # those that calculate in other processes


@pytest.fixture
def opened(faults, tmp_path):
    executors = []

    def make(name, timeout=None, **options) -> Executor:
        recipe = Recipe("faulty", {"folder": str(tmp_path)})
        if name == "in_process":
            executor = in_process(recipe.build())
        elif name == "pool":
            executor = open_pool(recipe, 2, timeout)
        else:
            part = (
                cluster.parsl(**options)
                if name == "parsl"
                else cluster.parsl_local(**{"workers": 2, "lost_after": 5.0} | options)
            )
            executor = part(Setting(recipe, timeout, 0, tmp_path))
        executors.append(executor)
        return executor

    yield make
    for executor in executors:
        executor.close()


def tasks_of(*behaviors: int) -> list[Task]:
    return [Task(np.array([1]), np.full((1, 3), float(i)), *OPEN, b, 0) for i, b in enumerate(behaviors)]


def calls(folder: Path) -> list[tuple[int, int]]:
    """(charge, process) of every calculation that was begun."""
    path = folder / "calls"
    lines = path.read_text().splitlines() if path.exists() else []
    return [(int(charge), int(pid)) for charge, pid in (line.split() for line in lines)]


def until(holds, patience=30.0):
    end = time.monotonic() + patience
    while not (value := holds()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)
    return value


def gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def command_of(process: psutil.Process) -> list[str]:
    """Words of a process' command; none of one that has ended, as any process of the machine may while it is asked."""
    try:
        return process.cmdline()
    except psutil.NoSuchProcess:  # also of zombies
        return []


def test_a_run_opens_one_executor_for_all_it_labels(faults, tmp_path):
    """Workers of a cluster must not be given back between the first labels and the exploration."""
    executors = []

    def opener(recipe, timeout):
        executors.append(open_pool(recipe, 1, timeout))
        return executors[-1]

    recipe = Recipe("faulty", {"folder": str(tmp_path)})
    with shared_executor(opener) as shared:
        for _ in range(2):
            executor = shared(recipe, None)
            assert all(result.ok for result in run_all(executor, tasks_of(faults.GOOD, faults.GOOD)))
            executor.close()  # nothing is at work: it stays open for the next
        workers = {pid for _, pid in calls(tmp_path)}
        assert len(executors) == 1 and len(workers) == 1
        executor = shared(recipe, None)
        executor.submit(0, tasks_of(faults.HANGS)[0])
        executor.close()  # nobody waits for it any more
        with pytest.raises(LabelError, match="closed"):
            executors[0].submit(1, tasks_of(faults.GOOD)[0])
    with shared_executor(opener):
        pass
    assert len(executors) == 1


# ---------------------------------------------------------------- the contract


@pytest.mark.parametrize("name", ONCE)
def test_every_task_lands_once_and_waiting_ends(opened, faults, tmp_path, name):
    executor = opened(name)
    start = time.monotonic()
    assert executor.landed(0.0) == executor.landed(math.inf) == [] and time.monotonic() - start < 1.0
    for ticket, task in zip((7, 3, 11, 5), tasks_of(*[faults.GOOD] * 4), strict=True):
        executor.submit(ticket, task)
    landings: list[tuple[int, Result]] = []
    while len(landings) < 4:
        landings += executor.landed(30.0)
    assert {ticket: result.energy for ticket, result in landings} == {7: 0.0, 3: 3.0, 11: 6.0, 5: 9.0}
    assert executor.landed(math.inf) == [] and len(calls(tmp_path)) == 4
    results = run_all(executor, tasks_of(*[faults.GOOD] * 5))
    assert [result.energy for result in results] == [0.0, 3.0, 6.0, 9.0, 12.0]
    assert all((pid == os.getpid()) == (name == "in_process") for _, pid in calls(tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize("name", OUTSIDE)
def test_landed_waits_no_longer_than_it_may(opened, faults, tmp_path, name):
    executor = opened(name)
    executor.submit(0, tasks_of(faults.HANGS)[0])
    until(lambda: calls(tmp_path) or executor.landed(0.05))
    for patience in (0.0, 0.3):
        start = time.monotonic()
        assert executor.landed(patience) == []
        assert patience <= time.monotonic() - start < patience + 0.3


@pytest.mark.parametrize("name", EXECUTORS)
def test_a_closed_executor_takes_nothing_more(opened, faults, name):
    executor = opened(name)
    for _ in range(2):
        executor.close()
    for use in (lambda: executor.submit(0, tasks_of(faults.GOOD)[0]), lambda: executor.landed(0.0)):
        with pytest.raises(LabelError, match="the executor is closed"):
            use()


@pytest.mark.slow
@pytest.mark.parametrize("name", OUTSIDE)
def test_close_in_another_thread_ends_what_is_at_work_and_wakes_who_waits(opened, faults, tmp_path, name):
    executor, said = opened(name), []

    def wait():
        try:
            run_all(executor, tasks_of(faults.HANGS))
        except LabelError as error:
            said.append(str(error))

    thread = threading.Thread(target=wait)
    thread.start()
    ((_, worker),) = until(lambda: calls(tmp_path))
    executor.close()
    thread.join(20.0)
    assert said == ["the executor is closed"]
    until(lambda: gone(worker), 5.0)


@pytest.mark.parametrize("name", OUTSIDE)
def test_crash_hang_and_exception_fail_one_label_each(opened, faults, tmp_path, name):
    wrong = (faults.DIES, faults.HANGS, faults.RAISES, faults.CRIES, faults.DIES_ONCE)
    results = run_all(opened(name, timeout=2.0), tasks_of(faults.GOOD, *wrong, faults.GOOD))
    assert [result.ok for result in results] == [True, False, False, False, False, True, True]
    reasons = ["signal SIGKILL", "timeout: the calculation took more than 2 s", "breaks its promise", "out of memory"]
    for result, what in zip(results[1:5], reasons, strict=True):
        assert what in result.reason
    assert 2.0 <= results[2].seconds < 4.0
    begun = [charge for charge, _ in calls(tmp_path)]
    assert begun.count(faults.GOOD) == 2 and begun.count(faults.HANGS) == 1 and begun.count(faults.DIES) == 2


@pytest.mark.parametrize("name", ONCE)
def test_told_enough_it_begins_nothing_more_and_keeps_what_was_begun(opened, faults, tmp_path, name):
    executor, kept = opened(name), {}
    with pytest.raises(Enough):
        run_all(executor, tasks_of(*[faults.GOOD] * 9), kept.__setitem__, lambda: len(kept) >= 3)
    assert len(kept) == len(calls(tmp_path)) and 3 <= len(kept) <= 3 + executor.slots - 1
    assert run_all(executor, tasks_of(faults.GOOD))[0].ok  # it goes on where it is wanted


def test_no_more_than_the_slots_are_handed_over_at_a_time():
    inside, most = [], []

    def submit(ticket, task):
        inside.append(ticket)
        most.append(len(inside))

    def landed(patience):
        return [(inside.pop(), Result(0.0, np.zeros((1, 3)), np.zeros((3, 3)), True, "", 0.0))]

    executor = Executor(submit, landed, 3, lambda: None)
    assert len(run_all(executor, tasks_of(*[0] * 10))) == 10 and max(most) == 3 and len(most) == 10


def test_local_is_this_process_or_a_pool(faults, tmp_path):
    for workers in (0, 2):
        executor = local()(Setting(Recipe("faulty", {"folder": str(tmp_path)}), None, workers, tmp_path))
        assert run_all(executor, tasks_of(faults.GOOD))[0].ok and executor.slots == max(1, workers)
        assert (calls(tmp_path)[-1][1] == os.getpid()) == (workers == 0)
        executor.close()


def test_an_answer_that_is_there_counts_however_late_it_is_asked_for(opened, faults):
    """The driver of a pooled run may look in only once in a long while."""
    executor = opened("pool", timeout=0.5)
    assert run_all(executor, tasks_of(faults.GOOD, faults.GOOD))[0].ok  # both workers are there
    executor.submit(0, tasks_of(faults.GOOD)[0])
    time.sleep(1.5)
    ((ticket, result),) = executor.landed(0.0)
    assert ticket == 0 and result.ok


# ---------------------------------------------------------------- Parsl


@pytest.mark.slow
def test_a_lost_worker_and_a_lost_node_cost_time_but_no_label(opened, faults, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "/usr/bin:/bin")  # without the environment's folder, where interchange.py lies
    assert shutil.which("interchange.py") is None and shutil.which("process_worker_pool.py") is None
    executor = opened("parsl_local", workers=1)
    for up, what in enumerate(("spawn_main", "process_worker_pool")):  # Parsl's worker, and its manager of the node
        executor.submit(0, tasks_of(faults.HANGS)[0])
        before = len(calls(tmp_path))
        ((_, first),) = until(lambda: calls(tmp_path)[before:])  # noqa: B023
        process = psutil.Process(first).parents()[up]
        assert what in " ".join(command_of(process))
        process.kill()
        ((_, again),) = until(lambda: calls(tmp_path)[before + 1 :])  # noqa: B023
        assert again != first
        until(lambda: gone(first), 5.0)  # noqa: B023
        os.kill(again, signal.SIGKILL)  # twice: the pool in the worker tries once more by itself
        ((_, last),) = until(lambda: calls(tmp_path)[before + 2 :])  # noqa: B023
        os.kill(last, signal.SIGKILL)
        ((ticket, result),) = executor.landed(30.0)
        assert ticket == 0 and "the worker died (signal SIGKILL)" in result.reason
    (log,) = tmp_path.rglob("lost.log")
    lines = log.read_text().splitlines()
    assert len(lines) == 2 and "WorkerLost" in lines[0] and "ManagerLost" in lines[1]


@pytest.mark.slow
def test_a_label_that_takes_its_worker_along_every_time_is_given_up(opened, faults, tmp_path):
    results = run_all(opened("parsl_local"), tasks_of(faults.KILLS_PARENT, faults.GOOD))
    assert [result.ok for result in results] == [False, True]
    assert results[0].reason.startswith("its worker was lost 6 times: WorkerLost")
    assert [charge for charge, _ in calls(tmp_path)].count(faults.KILLS_PARENT) == 6


@pytest.mark.slow
def test_blocks_that_never_come_up_end_the_run_with_their_reason(opened, faults):
    executor = opened("parsl_local", worker_init=["echo no such module >&2; exit 3"])
    with pytest.raises(LabelError, match=r"executor: parsl_local has no working block: .*no such module"):
        run_all(executor, tasks_of(faults.GOOD))


@pytest.mark.slow
def test_a_broker_that_dies_is_told_and_takes_everything_along(opened, faults, tmp_path):
    executor = opened("parsl_local", workers=1)
    executor.submit(0, tasks_of(faults.HANGS)[0])
    ((_, worker),) = until(lambda: calls(tmp_path))
    (broker,) = (each for each in psutil.Process().children() if "jaxal.label.workers.broker" in command_of(each))
    others = [psutil.Process(worker), *psutil.Process(worker).parents()[:2], *broker.children(recursive=True)]
    broker.kill()
    with pytest.raises(LabelError, match=r"^executor: the broker of parsl_local died \(signal SIGKILL\)"):
        executor.landed(30.0)
    until(lambda: all(gone(each.pid) for each in others), 15.0)


@pytest.mark.slow
def test_nothing_is_left_of_a_program_that_is_killed(faults, tmp_path):
    code = f"""
import signal, sys, numpy as np, label_faults
from pathlib import Path
from jaxal.label.workers import cluster
from jaxal.label.workers.executor import Recipe, Setting, run_all
from jaxal.label.task import OPEN, Task
signal.signal(signal.SIGINT, lambda *_: None)  # as a run does: it ends when it is ready
setting = Setting(Recipe("faulty", {{"folder": sys.argv[1]}}), None, 0, Path(sys.argv[1]))
run_all(cluster.parsl_local()(setting), [Task(np.array([1]), np.zeros((1, 3)), *OPEN, {faults.HANGS}, 0)])
"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    program = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], env=environment, start_new_session=True)
    ((_, worker),) = until(lambda: calls(tmp_path))
    os.killpg(program.pid, signal.SIGINT)  # as the terminal does: it is for the program, not for the executor
    time.sleep(1.0)
    others = [psutil.Process(worker), *psutil.Process(worker).parents()]
    others = [each for each in others if any("parsl" in word or "jaxal" in word for word in command_of(each))]
    broker = [
        each
        for each in psutil.process_iter()
        if {"jaxal.label.workers.broker", str(program.pid)} <= set(command_of(each))
    ]
    assert len(others) >= 3 and len(broker) == 1
    others += [*broker, *broker[0].children(recursive=True)]
    assert not any(gone(each.pid) for each in others)
    program.kill()
    program.wait()
    until(lambda: all(gone(each.pid) for each in others), 15.0)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("config = 3", "defines no `config` that is a parsl.Config"),
        ("import no_such_module", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("config = (", "SyntaxError"),
    ],
)
def test_a_file_that_configures_nothing_is_one_line(opened, tmp_path, text, what):
    path = tmp_path / "parsl.py"
    path.write_text(text)
    with pytest.raises(LabelError, match=f"^executor: parsl: executor.config: {path}.*{what}") as error:
        opened("parsl", config=path)
    assert "\n" not in str(error.value)


HTEX = """
from parsl import Config
from parsl.executors import HighThroughputExecutor
from parsl.providers import LocalProvider

config = Config(
    executors=[
        HighThroughputExecutor(
            max_workers_per_node=2, cores_per_worker=0.1, address="127.0.0.1",
            launch_cmd=None, provider=LocalProvider(max_blocks=1, worker_init="export PATH={programs}:$PATH"),
        )
    ]
)
"""
THREADS = """
from parsl import Config
from parsl.executors import ThreadPoolExecutor

config = Config(executors=[ThreadPoolExecutor(max_threads=2)])
"""


@pytest.mark.slow
@pytest.mark.parametrize("text", [HTEX, THREADS])
def test_a_configuration_of_the_user_is_run_as_it_stands(opened, faults, tmp_path, text, monkeypatch):
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))  # what such a worker can import
    path = tmp_path / "parsl.py"
    path.write_text(text.replace("{programs}", str(Path(sys.executable).parent)))
    executor = opened("parsl", timeout=5.0, config=path)
    assert executor.slots == 2
    results = run_all(executor, tasks_of(faults.GOOD, faults.RAISES, faults.GOOD, faults.DIES, faults.GOOD))
    assert [result.ok for result in results] == [True, False, True, False, True]
    assert (tmp_path / "executor" / "000").is_dir() and not Path("runinfo").exists()


def test_mistakes_are_one_line_before_anything_is_calculated(faults, tmp_path, monkeypatch):
    with pytest.raises(
        LabelError, match=r"^executor.launcher: simple starts workers on one of 2 nodes only; give srun"
    ):
        monkeypatch.setattr(shutil, "which", lambda *_, **__: "/somewhere")
        cluster.slurm(nodes=2)
    monkeypatch.undo()
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(LabelError, match=r"^executor.name: slurm: there is no program 'sbatch'"):
        cluster.slurm()
    blank = tmp_path / "a folder"
    with pytest.raises(LabelError, match=r"^executor.name: parsl_local: Parsl cannot do with a blank in"):
        cluster.parsl_local()(Setting(Recipe("tblite", {}), None, 0, blank))


@pytest.mark.slow
def test_labels_of_a_service_over_parsl_are_those_of_this_process(tmp_path):
    from ase.build import molecule
    from test_label_service import TABLE, batch_of

    import jaxal.label.methods.tblite  # noqa: F401  registers
    from jaxal.label.service import label_service

    assert molecule("H2O").numbers.tolist() == [8, 1, 1]
    answers = []
    for name in ("parsl_local", ""):
        part = cluster.parsl_local(workers=2) if name else local()
        service = label_service(
            Recipe("tblite", {}),
            table=TABLE,
            store=tmp_path / f"labels{name}.sqlite",
            executor=lambda recipe, timeout: part(Setting(recipe, timeout, 0, tmp_path)),  # noqa: B023
        )
        answers.append(service.label(batch_of(4, dtype=np.float64), np.ones(4, bool)))
        assert service.store.counts()["done"] == 4
        service.close()
    for a, b in zip(*answers, strict=True):
        np.testing.assert_array_equal(a, b)
