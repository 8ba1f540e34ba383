"""The process that runs Parsl: `python -m jaxal.label.workers.broker FD PARENT` takes tasks from the pipe FD.

It gets (kind, options, recipe, folder) and answers ["", slots], or [why not, 0]. Then it takes [ticket, task], answers
[ticket, result], and [None, reason] once nothing can be calculated any more. None, or the end of the pipe, ends it:
the blocks are given back. A label whose block, node or worker is lost is submitted again; `lost.log` says so.
"""

import functools
import importlib.util
import os
import shlex
import signal
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from jaxal.label.task import LabelError, Task, failed, one_line, packed, unpacked
from jaxal.label.workers.cluster import CLOSING, calculate
from jaxal.label.workers.process import OUTER_PATH, begin, import_path

LOST = 5  # times that a label is submitted again
FAILED_BLOCKS = 3  # one after another, and nothing more can be hoped for
POLL = 10.0  # s between two looks at Slurm's queue
PACKAGE = "parsl.executors.high_throughput"


def serve(connection: Connection) -> None:
    """Runs Parsl until the other end of the pipe has enough or is gone."""
    kind, options, recipe, folder = unpacked(connection.recv_bytes())
    sending = threading.Lock()

    def tell(message: Any) -> None:
        try:
            with sending:
                connection.send_bytes(packed(message))
        except OSError:
            pass  # nobody waits for it any more

    try:
        from parsl import DataFlowKernel, python_app

        config, slots, threads = described(kind, options, folder)
        kernel = DataFlowKernel(config)
    except Exception as error:
        tell([f"{kind}: {one_line(error)}", 0])
        return
    app = python_app(calculate, data_flow_kernel=kernel, cache=False)
    recipe = packed([*recipe, threads])
    log = Path(kernel.run_dir) / "lost.log"
    closing = threading.Event()

    def submit(ticket: int, task: bytes, lost: int = 0) -> None:
        app(recipe, task).add_done_callback(functools.partial(landed, ticket, task, lost))

    def landed(ticket: int, task: bytes, lost: int, future: Future) -> None:
        error = future.exception()
        if error is None:
            tell([ticket, future.result()])
            return
        if closing.is_set():
            return
        with open(log, "a", encoding="utf-8") as file:
            file.write(f"{time.strftime('%Y-%m-%dT%H:%M:%S')} ticket {ticket} lost {lost + 1}: {one_line(error)}\n")
        if hopeless := [each for each in kernel.executors.values() if getattr(each, "bad_state_is_set", False)]:
            tell(
                [None, f"{kind} has no working block: {one_line(str(getattr(hopeless[0], 'executor_exception', '')))}"]
            )
        elif lost < LOST:
            submit(ticket, task, lost + 1)
        elif type(error).__name__ in ("ManagerLost", "WorkerLost"):
            reason = f"its worker was lost {lost + 1} times: {one_line(error)}"
            tell([ticket, packed(failed(Task(*unpacked(task)), reason))])
        else:  # not of the calculation: the worker cannot import it, or its answer does not get here
            tell([None, f"{kind}: a worker cannot calculate: {one_line(error)}"])

    tell(["", slots])
    try:
        while (message := unpacked(connection.recv_bytes())) is not None:
            submit(*message)
    except (EOFError, OSError):
        pass
    closing.set()
    tell([None, "the executor is closed"])  # wakes who waits
    watchdog = threading.Timer(CLOSING, os.killpg, (os.getpgrp(), signal.SIGKILL))
    watchdog.daemon = True
    watchdog.start()
    kernel.cleanup()


def described(kind: str, options: dict[str, Any], folder: str) -> tuple[Any, int, int]:
    """(Parsl's configuration, labels at a time, threads of each). Raises LabelError for a file that has none."""
    from parsl import Config
    from parsl.executors import HighThroughputExecutor
    from parsl.executors.high_throughput.executor import DEFAULT_INTERCHANGE_LAUNCH_CMD, DEFAULT_LAUNCH_CMD

    # by the interpreter, not by name: the environment's folder of programs need not be on PATH
    interchange = [sys.executable, "-P", "-m", f"{PACKAGE}.interchange"]
    if kind == "parsl":
        config = _config_of(Path(options["config"]))
        for executor in config.executors:
            if getattr(executor, "interchange_launch_cmd", None) == DEFAULT_INTERCHANGE_LAUNCH_CMD:
                executor.interchange_launch_cmd = interchange
        if config.run_dir == "runinfo":
            config.run_dir = folder
        config.initialize_logging = False
        return config, options["slots"] or sum(map(_slots, config.executors)), options["threads"]

    workers, cores = options["workers"], options["cores"]
    provider = _slurm(options) if kind == "slurm" else _local(options)
    worker = shlex.join([sys.executable, "-P", "-m", f"{PACKAGE}.process_worker_pool"])
    executor = HighThroughputExecutor(
        label=kind,
        provider=provider,
        address=_address(kind, options),
        max_workers_per_node=workers,
        cores_per_worker=1e-3 if kind == "parsl_local" else float(cores),  # locally as many as asked for
        heartbeat_threshold=round(options["lost_after"]),
        heartbeat_period=max(1, round(options["lost_after"] / 5)),
        launch_cmd=DEFAULT_LAUNCH_CMD.replace("process_worker_pool.py", worker),
        interchange_launch_cmd=interchange,
        block_error_handler=_failing,
        encrypted=True,  # what travels is pickled by Parsl: nobody else on the network may send any
    )
    config = Config(
        executors=[executor],
        run_dir=folder,
        strategy="simple",  # the other one cancels blocks that have not begun once they have more workers than labels
        strategy_period=2.0,
        max_idletime=options.get("idle", 1e9),
        initialize_logging=False,
    )
    return config, _slots(executor), cores


def _failing(executor: Any, status: Any) -> None:
    """Gives up where the last blocks that ended have all failed and none is at work.

    Parsl's own handlers give up after the first that is canceled before it began, or count those that are waiting.
    """
    from parsl.jobs.error_handlers import windowed_error_handler

    ended = [block for block in sorted(status, key=int) if status[block].terminal][-FAILED_BLOCKS:]
    if not set(executor.connected_blocks()) & {block for block in status if not status[block].terminal}:
        windowed_error_handler(executor, {block: status[block] for block in ended}, FAILED_BLOCKS)


def _slurm(options: dict[str, Any]) -> Any:
    from parsl.launchers import SingleNodeLauncher, SrunLauncher
    from parsl.providers import SlurmProvider

    class Provider(SlurmProvider):
        """Looks at the queue often enough to replace a canceled job within seconds."""

        status_polling_interval = POLL  # pyright: ignore[reportAssignmentType]

    seconds = round(options["walltime"])
    provider = Provider(
        partition=options["partition"] or None,
        account=options["account"] or None,
        nodes_per_block=options["nodes"],
        cores_per_node=options["workers"] * options["cores"],
        mem_per_node=options["memory"],
        init_blocks=min(options["first_blocks"], options["blocks"]),
        min_blocks=0,
        max_blocks=options["blocks"],
        walltime=f"{seconds // 3600:02d}:{seconds % 3600 // 60:02d}:{seconds % 60:02d}",
        scheduler_options="\n".join(options["scheduler_options"]),
        worker_init=_prepared(options["worker_init"]),
        exclusive=options["exclusive"],
        launcher=SrunLauncher(debug=False) if options["launcher"] == "srun" else SingleNodeLauncher(debug=False),
    )
    if provider._cmd.startswith("squeue"):  # fails for a job it has forgotten, which Parsl would take for running
        forgotten = "case \"$said\" in *'Invalid job id'*) exit 0;; esac"
        provider._cmd = f'said=$({provider._cmd} 2>&1); code=$?; {forgotten}; echo "$said"; exit $code'
    return provider


def _local(options: dict[str, Any]) -> Any:
    from parsl.launchers import SingleNodeLauncher
    from parsl.providers import LocalProvider

    return LocalProvider(
        init_blocks=1, max_blocks=1, worker_init=_prepared(options["worker_init"]), launcher=SingleNodeLauncher(False)
    )


def _prepared(lines: Sequence[str]) -> str:
    """The user's lines, then the way to everything that this program can import."""
    outer = f'export {OUTER_PATH}="$PYTHONPATH"'
    return "\n".join([*lines, outer, f"export PYTHONPATH={shlex.quote(import_path())}"])


def _address(kind: str, options: dict[str, Any]) -> str | None:
    from parsl.addresses import address_by_interface

    if kind == "parsl_local":
        return "127.0.0.1"
    return address_by_interface(options["interface"]) if options["interface"] else options["address"] or None


def _slots(executor: Any) -> int:
    """How many labels an executor of Parsl calculates at a time, as far as it says."""
    provider = getattr(executor, "provider", None)
    if provider is None:
        return int(getattr(executor, "max_threads", None) or getattr(executor, "max_workers", None) or 1)
    return max(1, int(provider.max_blocks * provider.nodes_per_block * executor.workers_per_node))


def _config_of(path: Path) -> Any:
    from parsl import Config

    spec = importlib.util.spec_from_file_location("jaxal_parsl_config", path)
    if spec is None or spec.loader is None:
        raise LabelError(f"executor.config: {path} is no Python file; give one that defines `config`")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise LabelError(f"executor.config: {path}: {one_line(error)}") from error
    config = getattr(module, "config", None)
    if not isinstance(config, Config):
        raise LabelError(f"executor.config: {path} defines no `config` that is a parsl.Config")
    return config


if __name__ == "__main__":
    serve(begin()[0])
