"""What the broker asks Parsl for: configurations of every kind, with Parsl's own objects and without starting any."""

import os
import sys
from multiprocessing import Pipe
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("parsl", reason="Parsl is not installed: pip install '.[cluster]'")

from parsl.executors import HighThroughputExecutor, ThreadPoolExecutor
from parsl.jobs.states import JobState, JobStatus
from parsl.launchers import SingleNodeLauncher, SrunLauncher
from parsl.providers import LocalProvider

from jaxal.label.task import LabelError, packed, unpacked
from jaxal.label.workers import broker

SLURM = {
    "partition": "",
    "account": "",
    "blocks": 4,
    "first_blocks": 1,
    "nodes": 1,
    "workers": 3,
    "cores": 2,
    "memory": None,
    "exclusive": False,
    "walltime": 3600.0,
    "idle": 300.0,
    "lost_after": 20.0,
    "launcher": "simple",
    "scheduler_options": (),
    "worker_init": (),
    "address": "",
    "interface": "",
}
LOCAL = {"workers": 3, "cores": 2, "lost_after": 4.0, "worker_init": ("module load orca",)}
HTEX = """
from parsl import Config
from parsl.executors import HighThroughputExecutor
from parsl.providers import LocalProvider

interchange = {interchange}
own = {"interchange_launch_cmd": interchange} if interchange else {}
config = Config(
    executors=[
        HighThroughputExecutor(
            label=name, max_workers_per_node=workers, cores_per_worker=0.1, address="127.0.0.1",
            provider=LocalProvider(nodes_per_block=1, max_blocks=3), **own,
        )
        for name, workers in (("few", 1), ("many", 4))
    ],
    run_dir={run_dir},
)
"""


def configured(path: Path, **values: Any) -> dict[str, Any]:
    text = HTEX
    for name, value in ({"interchange": None, "run_dir": "runinfo"} | values).items():
        text = text.replace(f"{{{name}}}", repr(value))
    path.write_text(text)
    return {"config": str(path), "slots": 0, "threads": 5}


def test_blocks_of_slurm_are_asked_for_as_the_options_say(tmp_path):
    asked = {"partition": "long", "account": "me", "first_blocks": 9, "nodes": 2, "memory": 8, "exclusive": True}
    asked |= {"walltime": 3725.4, "idle": 30.0, "lost_after": 21.0, "launcher": "srun"}
    asked |= {"scheduler_options": ("#SBATCH --gres=gpu:1", "#SBATCH --qos=low"), "worker_init": ("module load orca",)}
    config, slots, threads = broker.described("slurm", SLURM | asked, str(tmp_path))
    (executor,) = config.executors
    provider = executor.provider
    assert (slots, threads) == (4 * 2 * 3, 2) and config.run_dir == str(tmp_path) and config.max_idletime == 30.0
    assert (provider.init_blocks, provider.min_blocks, provider.max_blocks) == (4, 0, 4)
    assert (provider.walltime, provider.nodes_per_block, provider.mem_per_node) == ("01:02:05", 2, 8)
    lines = ["--gres=gpu:1", "--qos=low", "--exclusive", "--partition=long", "--account=me"]
    assert provider.scheduler_options.split("\n") == [*(f"#SBATCH {line}" for line in lines), ""]
    assert provider.cores_per_node == 6 and executor.workers_per_node == 3 and executor.encrypted
    assert (executor.heartbeat_threshold, executor.heartbeat_period) == (21, 4)
    assert isinstance(provider.launcher, SrunLauncher) and provider.status_polling_interval == broker.POLL
    assert executor.launch_cmd.startswith(f"{sys.executable} -P -m {broker.PACKAGE}.process_worker_pool ")
    assert executor.interchange_launch_cmd == [sys.executable, "-P", "-m", f"{broker.PACKAGE}.interchange"]


def test_by_default_slurm_chooses_partition_and_account_itself():
    provider = broker._slurm(SLURM)
    assert provider.scheduler_options == "\n" and provider.init_blocks == 1
    assert isinstance(provider.launcher, SingleNodeLauncher)


@pytest.mark.parametrize(
    ("said", "code", "state"),
    [
        ("slurm_load_jobs error: Invalid job id specified", 1, JobState.COMPLETED),  # Slurm has forgotten it
        ("Unable to contact slurm controller", 1, JobState.RUNNING),  # nothing is known of it
        ("17 PD", 0, JobState.PENDING),
        ("", 0, JobState.COMPLETED),
    ],
)
def test_a_job_that_slurm_has_forgotten_has_ended(tmp_path, monkeypatch, said, code, state):
    """With programs in place of Slurm's: no accounting, and a queue that says what it may say."""
    for name, text in (("sacct", "exit 1"), ("squeue", f"echo '{said}'; exit {code}")):
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    provider = broker._slurm(SLURM)
    paths = {"job_stdout_path": str(tmp_path / "out"), "job_stderr_path": str(tmp_path / "err")}
    provider.resources["17"] = {"status": JobStatus(JobState.RUNNING), **paths}
    (status,) = provider.status(["17"])
    assert status.state == state


def test_workers_of_this_host_are_as_many_as_asked_for(tmp_path):
    config, slots, threads = broker.described("parsl_local", LOCAL, str(tmp_path))
    (executor,) = config.executors
    assert (slots, threads) == (3, 2) and executor.workers_per_node == 3  # however few cores there are
    assert executor.address == "127.0.0.1" and executor.heartbeat_period == 1
    assert (executor.provider.init_blocks, executor.provider.max_blocks) == (1, 1)
    assert config.max_idletime > 1e8  # never given back


@pytest.mark.parametrize("kind", ["slurm", "parsl_local"])
def test_a_node_runs_the_users_lines_and_then_finds_what_this_process_imports(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(sys, "path", ["", str(tmp_path / "with a blank")])
    monkeypatch.chdir(tmp_path)
    options = (SLURM if kind == "slurm" else LOCAL) | {"worker_init": ("export PYTHONPATH=/users",)}
    (executor,) = broker.described(kind, options, str(tmp_path))[0].executors
    script = executor.provider.worker_init + '\necho "$PYTHONPATH"; echo "$JAXAL_OUTER_PYTHONPATH"'
    with os.popen(script) as shell:
        assert shell.read().splitlines() == [f"{tmp_path}:{tmp_path}/with a blank", "/users"]


@pytest.mark.parametrize(
    ("options", "address"),
    [({}, None), ({"address": "login1"}, "login1"), ({"interface": "lo", "address": "login1"}, "127.0.0.1")],
)
def test_nodes_reach_this_host_at_the_interface_or_address(options, address):
    assert broker._address("slurm", SLURM | options) == address


def test_a_configuration_of_the_user_is_kept_but_for_what_cannot_work_here(tmp_path):
    options = configured(tmp_path / "parsl.py")
    config, slots, threads = broker.described("parsl", options, str(tmp_path))
    assert slots == 3 * 1 + 3 * 4 and threads == 5 and config.run_dir == str(tmp_path)
    assert not config.initialize_logging
    assert all(executor.interchange_launch_cmd[0] == sys.executable for executor in config.executors)
    assert broker.described("parsl", options | {"slots": 2}, str(tmp_path))[1] == 2

    own = configured(tmp_path / "parsl.py", interchange=["/opt/interchange"], run_dir="/scratch/mine")
    config, *_ = broker.described("parsl", own, str(tmp_path))
    assert config.run_dir == "/scratch/mine"
    assert all(executor.interchange_launch_cmd == ["/opt/interchange"] for executor in config.executors)


@pytest.mark.parametrize(
    ("executor", "slots"),
    [
        (ThreadPoolExecutor(max_threads=6), 6),
        (HighThroughputExecutor(max_workers_per_node=2, cores_per_worker=0.1, provider=LocalProvider(max_blocks=0)), 1),
        (object(), 1),  # it says nothing
    ],
)
def test_slots_of_an_executor(executor, slots):
    assert broker._slots(executor) == slots


@pytest.mark.parametrize(
    ("name", "text", "what"),
    [
        ("parsl.yaml", "config: 1", r"is no Python file; give one that defines `config`$"),
        ("parsl.py", "", "defines no `config` that is a parsl.Config$"),
        ("parsl.py", "raise RuntimeError('no\\nlicense')", "RuntimeError: no license$"),
        ("parsl.py", None, r"FileNotFoundError: \[Errno 2\] No such file"),
    ],
)
def test_a_wrong_file_is_what_the_broker_answers(tmp_path, name, text, what):
    """Before anything is started; the answer takes the place of the number of slots."""
    path = tmp_path / name
    if text is not None:
        path.write_text(text)
    with pytest.raises(LabelError, match=f"^executor.config: {path}:? {what}"):
        broker._config_of(path)
    ours, theirs = Pipe()
    with ours, theirs:
        options = {"config": str(path), "slots": 0, "threads": 1}
        ours.send_bytes(packed(["parsl", options, ["module", "name", {}, [], None], str(tmp_path)]))
        broker.serve(theirs)
        reason, slots = unpacked(ours.recv_bytes())
    assert reason.startswith(f"parsl: executor.config: {path}") and "\n" not in reason and slots == 0


# ---------------------------------------------------------------- blocks that fail

FAILED, DONE, WAITS, RUNS = JobState.FAILED, JobState.COMPLETED, JobState.PENDING, JobState.RUNNING
THREE = {"9": FAILED, "10": FAILED, "11": FAILED}


@pytest.mark.parametrize(
    ("states", "connected", "hopeless"),
    [
        (THREE, (), True),
        ({"10": FAILED, "11": FAILED}, (), False),  # too few
        ({"9": FAILED, "10": DONE, "11": FAILED}, (), False),
        ({"8": DONE, **THREE}, (), True),  # "8" < "9" < "10" by number
        ({"1": FAILED, "9": FAILED, "10": FAILED, "11": DONE}, (), False),  # the last one worked
        ({**THREE, "12": WAITS}, (), True),  # which may never begin
        ({**THREE, "12": RUNS}, ("12",), False),  # its workers are there
        ({**THREE, "12": RUNS}, (), True),  # it begins as the others did
        (THREE, ("11",), True),  # what was connected has ended
    ],
)
def test_three_failed_blocks_in_a_row_end_it_unless_workers_are_there(states, connected, hopeless):
    class Executor(HighThroughputExecutor):
        def connected_blocks(self):
            return list(connected)

    executor = Executor(provider=LocalProvider(), address="127.0.0.1")
    status = {block: JobStatus(state, message=f"block {block}") for block, state in states.items()}
    broker._failing(executor, status)
    assert executor.bad_state_is_set == hopeless
    if hopeless:
        assert all(f"block {block}" in str(executor.executor_exception) for block in THREE)
