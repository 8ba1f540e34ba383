"""Every command with good and with bad input, most in this process, some in processes of their own."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml
from ase.build import molecule
from ase.calculators.emt import EMT
from ase.io import write
from commands import SMALL, alone, here
from run_example import BRIEF

from jaxal.config import loading
from jaxal.config.loading import load
from jaxal.config.schema import Offline
from jaxal.core import registry
from jaxal.core.discovery import import_parts
from jaxal.core.errors import InputError, InputWarning
from jaxal.label.task import LabelError
from jaxal.run import checkpoint

CONFIG = """
system: {file: water.xyz}
potential: {cutoff: 3.0, channels: 4, l_max: 1, layers: 1, correlation: 1}
committee: {members: 2}
explore: {temperature: 300 K, walkers: 2}
label: {name: morse, initial: 4, sigma: 1.2, alpha: 2, cutoff: 4}
train: {steps: 5, initial_steps: 10, final_steps: 10, batch: 2, holdout: 0.3}
stop: {labels: 8, quiet: 0.1, time: 0.05}
gate: {implausible: 1000}
"""


def refused(*arguments: object, folder: Path, run: Callable[..., subprocess.CompletedProcess] = here) -> str:
    """The one line of a command that is refused."""
    process = run(*arguments, folder=folder)
    assert process.returncode == 2 and process.stdout == "", process.stderr
    assert process.stderr.startswith("jaxal: error: ") and process.stderr.count("\n") == 1
    return process.stderr.removeprefix("jaxal: error: ").rstrip()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path / "water.xyz", molecule("H2O"))
    (tmp_path / "config.yaml").write_text(CONFIG)
    return tmp_path


def labeled(path: Path, count: int = 12) -> Path:
    """Distorted water with energies and forces of ASE's EMT."""
    rng, frames = np.random.default_rng(0), []
    for _ in range(count):
        atoms = molecule("H2O")
        atoms.positions += rng.normal(scale=0.05, size=(3, 3))
        atoms.calc = EMT()
        atoms.get_forces()
        frames.append(atoms)
    write(path, frames)
    return path


def test_help_answers_at_once(tmp_path):
    start = time.perf_counter()
    process = alone("--help", folder=tmp_path)
    assert process.returncode == 0 and time.perf_counter() - start < 1.0
    for command in ("run", "resume", "train", "validate", "report", "list", "check"):
        assert f"    {command} " in process.stdout
    assert "key.sub=value" in alone("run", "--help", folder=tmp_path).stdout
    # JAX takes a second to import: nothing but a command may do it.
    probe = "import sys, jaxal.cli.main; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", probe], check=False).returncode == 0


@pytest.mark.parametrize("arguments", [(), ("fly",), ("run",), ("resume",), ("validate", "x"), ("list", "a", "b")])
def test_wrong_arguments_get_the_usage(tmp_path, arguments):
    process = here(*arguments, folder=tmp_path)
    assert process.returncode == 2 and process.stderr.startswith("usage: jaxal")


def test_list_shows_every_part_and_option(tmp_path):
    import_parts()
    text = here("list", folder=tmp_path).stdout
    for kind in registry.KINDS:
        for name in registry.names(kind):
            block = text.split(f"{kind} {name}\n", 1)[1].split("\n\n", 1)[0].splitlines()
            assert block[0].strip() == registry.description(kind, name)
            assert [line.split()[0] for line in block[1:]] == [option.name for option in registry.options(kind, name)]
    only = here("list", "explorer", folder=tmp_path).stdout
    assert "explorer nve\n" in only and "oracle" not in only
    assert next(line.split() for line in only.splitlines() if "timestep" in line) == ["timestep", "0.5", "fs"]
    assert refused("list", "explorers", folder=tmp_path).startswith(
        "list: unknown kind 'explorers'; kinds are potential"
    )


def test_check_prints_the_resolved_configuration(folder):
    process = alone("check", "config.yaml", "explore.timestep=0.25 fs", "seed=7", folder=folder)
    assert process.returncode == 0, process.stderr
    (folder / "printed.yaml").write_text(process.stdout)
    assert load(folder / "printed.yaml") == load(folder / "config.yaml", ["explore.timestep=0.25", "seed=7"])
    assert yaml.safe_load(process.stdout)["explore"]["timestep"] == 0.25


def test_every_command_refuses_in_one_line(folder):
    for arguments in (
        ("run", "none.yaml"),
        ("check", "config.yaml", "explore.walkers=0"),
        ("train", "config.yaml"),
        ("resume", "none"),
        ("report", "none"),
        ("validate", "none", "--data", "water.xyz"),
        ("list", "nothing"),
    ):
        assert refused(*arguments, folder=folder)
    assert refused("run", "none.yaml", folder=folder, run=alone)  # and as users start it


@pytest.mark.parametrize("command", ["run", "check"])
@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["none.yaml"], "none.yaml: there is no such file"),
        (["config.yaml", "explore.temprature=1"], "override 'explore.temprature=1': explore.temprature: unknown field"),
        (
            ["config.yaml", "explore.temperature=1 fs"],
            "override 'explore.temperature=1 fs': explore.temperature: '1 fs'",
        ),
        (["config.yaml", "system.file=none.xyz"], "override 'system.file=none.xyz': system.file: there is no file"),
        (["config.yaml", "system.index=4"], "system.index: 4 does not fit; "),
        (
            ["config.yaml", "explore.name=npt_nose_hoover"],
            "explore.name: npt_nose_hoover needs a cell that is periodic in all three directions",
        ),
        (["config.yaml", "label={name: stillinger_weber, initial: 4}"], "label: stillinger_weber: knows silicon only"),
        (["bad.yaml"], "bad.yaml, line 2: not valid YAML: 'seed' is given twice"),
    ],
)
def test_run_and_check_refuse_a_wrong_configuration(folder, command, arguments, expected):
    (folder / "bad.yaml").write_text("seed: 1\nseed: 2\n")
    assert refused(command, *arguments, folder=folder).startswith(expected)
    assert not (folder / "runs").exists()  # nothing was begun


def test_run_refuses_a_used_folder(folder):
    used = folder / "runs" / folder.name  # config.yaml: the folder gives the name
    used.mkdir(parents=True)
    (used / "config.yaml").write_text("")
    where = used.relative_to(folder)
    assert refused("run", "config.yaml", folder=folder) == (
        f"{where}: already holds a run; `jaxal resume {where}` continues it, --dir takes a new folder"
    )
    (folder / "other.yaml").write_text(CONFIG)
    (folder / "runs" / "other").mkdir()
    (folder / "runs" / "other" / "notes.txt").write_text("mine")
    message = "runs/other: is not an empty folder; give a new one with --dir"
    assert refused("run", "other.yaml", folder=folder) == message
    assert refused("run", "other.yaml", "--dir", "water.xyz", folder=folder).startswith(
        "water.xyz: is not an empty folder"
    )
    labeled(folder / "data.xyz")
    (folder / "train.yaml").write_text("data: {file: data.xyz}")
    assert "resume" not in refused("train", "train.yaml", "--dir", used, folder=folder)


def test_resume_and_report_refuse_what_is_no_run(folder):
    for command in ("resume", "report"):
        for target in (".", "none"):
            if target == ".":
                (folder / "config.yaml").unlink(missing_ok=True)
            assert refused(command, target, folder=folder).startswith(f"{target}: not a run folder, it holds no config")


def test_train_refuses_a_wrong_configuration(folder):
    (folder / "train.yaml").write_text("data: {file: data.xyz}")
    assert refused("train", "train.yaml", folder=folder).startswith("train.yaml: data.file: there is no file")
    labeled(folder / "data.xyz")
    assert "explore: unknown field" in refused("train", "train.yaml", "explore.walkers=2", folder=folder)
    assert load(folder / "train.yaml", cls=Offline).data.file.name == "data.xyz"


def test_validate_refuses_what_is_no_model(folder):
    labeled(folder / "data.xyz")
    assert "none" in refused("validate", "none", "--data", "data.xyz", folder=folder)


def test_a_reader_that_has_seen_enough_is_no_error(tmp_path):
    command = f"{sys.executable} -m jaxal list | head -n 1"
    process = subprocess.run(command, shell=True, cwd=tmp_path, capture_output=True, text=True)
    assert process.stdout.startswith("potential ") and process.stderr == ""


def test_run_report_validate_resume(folder):
    (folder / "config.yaml").write_text(BRIEF)
    process = here("run", "config.yaml", "--part", SMALL, "--dir", "out", folder=folder)
    assert process.returncode == 0, process.stderr
    assert yaml.safe_load((folder / "out" / "config.yaml").read_text())["stop"]["labels"] == 32
    assert "already holds a run" in refused("run", "config.yaml", "--part", SMALL, "--dir", "out", folder=folder)
    assert here("resume", "out", folder=folder).returncode == 0  # a finished run: nothing is left to do
    report = here("report", "out", folder=folder)
    assert report.returncode == 0 and (folder / report.stdout.strip()).is_file()
    labeled(folder / "data.xyz")
    validate = ("validate", "out", "--data", "data.xyz", "--part", SMALL)
    text = here(*validate, folder=folder)
    assert text.returncode == 0 and "force, meV/Å" in text.stdout
    validation = json.loads(here(*validate, "--json", folder=folder).stdout)
    assert validation["errors"]["structures"] == 12
    assert "there is no such file" in refused("validate", "out", "--data", "none.xyz", "--part", SMALL, folder=folder)


def test_train_from_a_file(folder):
    labeled(folder / "data.xyz")
    (folder / "train.yaml").write_text(
        "data: {file: data.xyz}\ncommittee: {kind: shared, members: 3}\ntrain: {final_steps: 10, batch: 2}\n"
        "potential: {cutoff: 3.0, channels: 4, l_max: 1, layers: 1, correlation: 1}\n"
    )
    process = here("train", "train.yaml", folder=folder)
    assert process.returncode == 0, process.stderr
    text = here("validate", "runs/train", "--data", "data.xyz", folder=folder)
    assert text.returncode == 0 and "12 structures" in text.stdout


def endless(folder: Path) -> subprocess.Popen:
    """A run into `out` that would go on for a day, once it has its configuration there."""
    options = ["stop.labels=1000", "stop.time=1 ns", "stop.quiet=1 ns", "output.checkpoint=1 h", "--dir", "out"]
    arguments = [
        sys.executable,
        "-m",
        "jaxal",
        "run",
        "config.yaml",
        "potential={name: bonds}",
        "--part",
        str(SMALL),
        *options,
    ]
    child = subprocess.Popen(arguments, cwd=folder, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    awaited(child, (folder / "out" / "config.yaml").exists)
    return child


def awaited(child: subprocess.Popen, there: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not there() and child.poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)
    assert there()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_told_to_end_keeps_its_last_segment_and_says_how_to_resume(folder, number):
    child, metrics = endless(folder), folder / "out" / "metrics.jsonl"
    if number == signal.SIGTERM:  # in the middle of the exploration; the other at its very beginning
        awaited(child, lambda: metrics.exists() and '"segment"' in metrics.read_text())
    os.kill(child.pid, number)
    _, err = child.communicate(timeout=120)
    assert child.returncode == 0, err
    assert err.rstrip().endswith("jaxal: ended as told; `jaxal resume out` continues")
    assert "Traceback" not in err
    if number == signal.SIGTERM:  # nothing is due for an hour: it was written because of the signal
        looks = [json.loads(line)["looks"] for line in metrics.read_text().splitlines() if "looks" in line]
        assert checkpoint.latest(folder / "out" / "checkpoints") == looks[-1] > 0


def test_a_run_told_twice_ends_at_once(folder):
    child = endless(folder)
    os.kill(child.pid, signal.SIGINT)
    assert child.stderr is not None
    while "Ctrl-C" not in child.stderr.readline():
        assert child.poll() is None
    os.kill(child.pid, signal.SIGINT)
    _, err = child.communicate(timeout=10)
    assert child.returncode == 130
    assert err.rstrip().endswith("jaxal: interrupted; `jaxal resume out` continues")


def raised(error: BaseException, monkeypatch, folder: Path, *more: str) -> tuple[int, str]:
    """Status and standard error of a command inside of which something is raised."""

    def load(*_):
        raise error

    monkeypatch.setattr("jaxal.config.loading.load", load)
    process = here("check", "config.yaml", *more, folder=folder)
    return process.returncode, process.stderr


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (KeyboardInterrupt(), 130, "\njaxal: interrupted\n"),
        (BrokenPipeError(), 0, ""),
        (OSError(errno.ENOSPC, "No space left on device"), 2, "jaxal: error: [Errno 28] No space left on device\n"),
        (PermissionError(13, "Permission denied", "a.xyz"), 2, "jaxal: error: [Errno 13] Permission denied: 'a.xyz'\n"),
        (InputError("a:\n  b\tc"), 2, "jaxal: error: a: b c\n"),
        (LabelError("label: no license"), 2, "jaxal: error: label: no license\n"),
    ],
)
def test_what_ends_a_command_is_a_line_and_a_status(folder, monkeypatch, error, status, line):
    assert raised(error, monkeypatch, folder) == (status, line)


@pytest.mark.parametrize("error", [OSError("no number"), ZeroDivisionError("mine"), ValueError("mine")])
def test_a_mistake_of_the_program_is_no_mistake_of_the_user(folder, monkeypatch, error):
    with pytest.raises(type(error), match=str(error)):
        raised(error, monkeypatch, folder)


def test_a_long_message_is_cut(folder, monkeypatch):
    assert len(raised(InputError("x" * 10_000), monkeypatch, folder)[1]) < 3000


def test_a_warning_is_a_line_of_its_own(folder, monkeypatch):
    """Of the user's input as such, of anything else by its kind; never with the place in the program."""
    real = loading.load

    def warned(*arguments):
        warnings.warn("the\nfile is odd", InputWarning, stacklevel=1)
        warnings.warn("old", UserWarning, stacklevel=1)
        return real(*arguments)

    monkeypatch.setattr(loading, "load", warned)
    process = here("check", "config.yaml", folder=folder)
    assert process.returncode == 0
    assert process.stderr.splitlines()[:2] == ["jaxal: warning: the file is odd", "jaxal: UserWarning: old"]


def test_a_kind_of_which_there_is_no_part_says_how_one_is_added(folder, monkeypatch):
    import_parts()
    monkeypatch.setitem(registry._table, "schedule", {})
    assert here("list", "schedule", folder=folder).stdout == (
        "no schedule is registered; docs/add_a_part.md says how one is added\n"
    )


def test_check_warns_of_what_can_be_and_is_odd(folder):
    process = here("check", "config.yaml", "explore.timestep=4 fs", folder=folder)
    assert process.returncode == 0 and yaml.safe_load(process.stdout)["explore"]["timestep"] == 4.0
    assert "jaxal: warning: explore.timestep: 4 fs is long for the O-H stretch" in process.stderr


def test_an_interrupted_run_says_how_it_goes_on(folder, monkeypatch):
    """Before the run itself listens to the signal."""

    def run(*_, **__):
        raise KeyboardInterrupt

    (folder / "out").mkdir()
    (folder / "out" / "config.yaml").write_text(CONFIG)
    monkeypatch.setattr("jaxal.run.driver.resume", run)
    process = here("resume", "out", folder=folder)
    assert process.returncode == 130 and process.stderr.endswith("jaxal: interrupted; `jaxal resume out` continues\n")
