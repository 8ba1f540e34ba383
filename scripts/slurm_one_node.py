"""A Slurm of one node for tests: as root, on this host alone, with folders and ports of its own.

    python scripts/slurm_one_node.py COMMAND ...     runs a command beside it

It needs Debian's slurm-wlm and munge, and nothing of a Slurm that may already be here: key, socket, configuration,
state and logs lie in a temporary folder, and everything is ended and removed with it.
"""

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scancel", "sinfo")
PATIENCE = 60.0  # s for the node to be idle, and for a program to end

CONFIGURATION = """
ClusterName=one
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge.socket
SlurmctldPort={controller}
SlurmdPort={node}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
KillWait=2
MailProg=/bin/true
NodeName={host} NodeAddr=127.0.0.1 CPUs={cores} CoresPerSocket={cores} ThreadsPerCore=1 RealMemory=4000
PartitionName=debug Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


def missing() -> str:
    """Why there can be no Slurm here; empty where there can."""
    if os.geteuid():
        return "a Slurm of its own needs root"
    path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    gone = [program for program in PROGRAMS if shutil.which(program, path=path) is None]
    return f"there is no {', '.join(gone)}: apt-get install slurm-wlm munge" if gone else ""


@contextlib.contextmanager
def one_node(cores: int | None = None) -> Iterator[dict[str, str]]:
    """Yields the environment variables by which Slurm's commands find it. Raises RuntimeError if it does not start."""
    host = socket.gethostname().partition(".")[0]
    started: list[subprocess.Popen] = []
    with tempfile.TemporaryDirectory(prefix="slurm-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        folder.chmod(0o755)  # munged wants its socket where everybody may come
        for inner in ("state", "spool"):
            (folder / inner).mkdir()
        (folder / "munge.key").write_bytes(os.urandom(1024))
        (folder / "munge.key").chmod(0o400)
        controller, node = _free_ports()
        text = CONFIGURATION.format(
            host=host, folder=folder, controller=controller, node=node, cores=cores or os.cpu_count()
        )
        (folder / "slurm.conf").write_text(text)
        (folder / "cgroup.conf").write_text("CgroupAutomount=no\n")
        environment = {
            "SLURM_CONF": str(folder / "slurm.conf"),
            "PATH": os.environ.get("PATH", "") + ":/usr/sbin:/sbin",
        }
        files = {"key": "munge.key", "socket": "munge.socket", "pid": "munged.pid", "seed": "munge.seed"}
        munged = [f"--{what}{'' if what == 'socket' else '-file'}={folder / file}" for what, file in files.items()]

        def start(*command: str) -> None:
            with open(folder / f"{command[0]}.said", "wb") as said:
                started.append(
                    subprocess.Popen(
                        command,
                        env=os.environ | environment,
                        stdin=subprocess.DEVNULL,
                        stdout=said,
                        stderr=said,
                        start_new_session=True,
                    )
                )

        def output(*command: str) -> str:
            result = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True)
            return result.stdout if result.returncode == 0 else ""

        try:
            start("munged", "--foreground", f"--log-file={folder / 'munged.log'}", *munged)
            _wait(lambda: (folder / "munge.socket").exists(), started, folder)
            start("slurmctld", "-D", "-c")
            start("slurmd", "-D", "-N", host)
            _wait(lambda: output("sinfo", "-h", "-o", "%T").strip() == "idle", started, folder)
            yield environment
        finally:
            output("scancel", "--user=root", "--full")
            end = time.monotonic() + 10.0
            while output("squeue", "-h") and time.monotonic() < end:
                time.sleep(0.2)
            for process in reversed(started):
                process.terminate()
                try:
                    process.wait(10.0)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()


def _free_ports() -> tuple[int, int]:
    with socket.socket() as first, socket.socket() as second:
        first.bind(("127.0.0.1", 0))
        second.bind(("127.0.0.1", 0))
        return first.getsockname()[1], second.getsockname()[1]


def _wait(ready: Callable[[], bool], started: list[subprocess.Popen], folder: Path) -> None:
    end = time.monotonic() + PATIENCE
    while not ready():
        dead = [process.args for process in started if process.poll() is not None]
        if dead or time.monotonic() > end:
            said = "\n".join(path.read_text(errors="replace")[-2000:] for path in sorted(folder.glob("*.said")))
            raise RuntimeError(f"no Slurm within {PATIENCE:g} s{f', {dead[0]} has ended' if dead else ''}:\n{said}")
        time.sleep(0.1)


if __name__ == "__main__":
    if why := missing():
        sys.exit(why)
    with one_node() as where:
        status = subprocess.run(sys.argv[1:], env=os.environ | where).returncode
    sys.exit(status)
