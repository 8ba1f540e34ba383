"""Scratch folders and programs, for codes that read and write files.

A calculation gets an empty folder of its own, so nothing of another one can leak into it. The folder goes when the
calculation went well; otherwise it stays and the reason names it.
"""

import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from jaxal.label.task import REASON_LENGTH, LabelError, Result, Task, failed, one_line

OUTPUT, ERRORS = "stdout.txt", "stderr.txt"  # in the scratch folder: what the program said stays readable
LAUNCHERS = ("mpirun", "mpiexec", "orterun")
LARGE = 10_000_000  # bytes; a kept folder loses larger files, which are wavefunctions: failures must not fill a disk
PATIENCE = 60.0  # s, for a program that is asked for its version


class Finished(NamedTuple):
    """A program that has ended."""

    output: str  # standard output
    failure: str  # how it ended, with its last words on standard error; empty where its exit status is 0


def in_scratch(task: Task, name: str, keep: str, work: Callable[[Path], Result]) -> Result:
    """What `work` answers in a fresh, empty folder.

    The folder lies in `keep`, or among the system's temporary files where that is empty. It is removed if the
    result is ok or `work` was interrupted; after a failure it stays and the reason ends with its path. An
    exception of `work` is a failure.
    """
    if keep:
        Path(keep).expanduser().mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f"jaxal-{name}-", dir=Path(keep).expanduser().resolve() if keep else None))
    try:
        result = work(folder)
    except Exception as error:
        result = failed(task, one_line(error))
    except BaseException:  # Ctrl-C: nobody asks why
        shutil.rmtree(folder, ignore_errors=True)
        raise
    if result.ok:
        shutil.rmtree(folder, ignore_errors=True)
        return result
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink() and path.stat().st_size > LARGE:
            path.unlink(missing_ok=True)
    where = f"; see {folder}"
    return result._replace(reason=result.reason[: REASON_LENGTH - len(where)] + where)


def run(
    command: Sequence[str],
    folder: Path,
    stdin: Path | None = None,
    variables: Mapping[str, str] | None = None,
    patience: float | None = None,
) -> Finished:
    """Runs an argument list in `folder`, without a shell, until it ends, or for `patience` seconds.

    `variables` join its environment.

    It belongs to the process group of its caller, so a worker of the pool takes it along when it is ended. It gets
    one thread unless OMP_NUM_THREADS says otherwise.
    """
    with (
        open(stdin or os.devnull, "rb") as source,
        open(folder / OUTPUT, "wb") as output,
        open(folder / ERRORS, "wb") as errors,
    ):
        try:
            ended = subprocess.run(
                [_program(command[0]), *command[1:]],
                cwd=folder,
                env=_environment(command) | dict(variables or {}),
                stdin=source,
                stdout=output,
                stderr=errors,
                timeout=patience,
            )
        except subprocess.TimeoutExpired:
            return Finished("", f"{Path(command[0]).name} did not end in {patience:g} s")
    said = [line.strip() for line in _read(folder / ERRORS).splitlines() if line.strip()]
    failure = ""
    if ended.returncode:
        how = f"signal {-ended.returncode}" if ended.returncode < 0 else f"exit status {ended.returncode}"
        failure = f"{Path(command[0]).name} ended with {how}" + (f": {said[-1]}" if said else "")
    return Finished(_read(folder / OUTPUT), failure)


def arguments(command: Any, field: str = "label.command") -> tuple[str, ...]:
    """The option `command` as an argument list. Raises LabelError for a plain text, which would need a shell."""
    if isinstance(command, str) or not isinstance(command, Sequence) or not command:
        raise LabelError(
            f"{field}: {command!r} is no list of arguments; give such as [mpirun, -np, '2', program], without a shell"
        )
    return tuple(os.path.expanduser(str(part)) for part in command)


def check_program(command: Sequence[str], hint: str, field: str = "label.command") -> None:
    """Raises LabelError where the first word of the command is no program; `hint` says how to get it."""
    if shutil.which(command[0]) is None:
        raise LabelError(f"{field}: there is no program {command[0]!r}; {hint}")


def program_version(command: Sequence[str], pattern: str, text: str = "", name: str = "input") -> str:
    """The version that the program prints: the first group of `pattern` in its output.

    `{input}` in the command stands for the file `name` that holds `text`, in an empty folder. The answer is "unknown"
    where the program cannot be started or does not say.
    """
    return _version(tuple(command), pattern, text, name)


def contents(files: Sequence[Path], field: str) -> str:
    """Names and SHA-256 of files, for a method's key. Raises LabelError for one that cannot be read."""
    described = []
    for file in map(Path, files):
        try:
            described.append(f"{file.name}:{hashlib.sha256(file.read_bytes()).hexdigest()[:16]}")
        except OSError as error:
            raise LabelError(f"{field}: cannot read {file} ({error.strerror}); give the path of a file") from error
    return ",".join(described) or "none"


@lru_cache
def _version(command: tuple[str, ...], pattern: str, text: str, name: str) -> str:
    with tempfile.TemporaryDirectory(prefix="jaxal-") as folder:
        (Path(folder) / name).write_text(text, encoding="utf-8")
        try:
            said = subprocess.run(
                [_program(command[0]), *(word.replace("{input}", name) for word in command[1:])],
                cwd=folder,
                env=_environment(command),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                timeout=PATIENCE,
            ).stdout.decode(errors="replace")
        except (OSError, subprocess.TimeoutExpired):
            return "unknown"
    match = re.search(pattern, said)
    return match[1] if match else "unknown"


def _program(name: str) -> str:
    """Where the program lies; a name that is relative to this process's folder must not be sought in the scratch."""
    path = shutil.which(name)
    return os.path.abspath(path) if path else name


def _environment(command: Sequence[str]) -> dict[str, str]:
    environment = {"OMP_NUM_THREADS": "1"} | os.environ
    if Path(command[0]).name in LAUNCHERS:
        # Open MPI binds the processes of every mpirun to the first cores: two workers would share one.
        environment.setdefault("OMPI_MCA_hwloc_base_binding_policy", "none")
        if os.geteuid() == 0:  # in a container; Open MPI wants to be told twice
            environment |= {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    return environment


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace")
