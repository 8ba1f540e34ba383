"""A small run of water with an oracle in JAX."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from ase.build import molecule
from ase.io import write
from commands import SMALL, here

WATER = """
system: {file: water.xyz}
potential: {name: bonds}
committee: {members: 2}
explore: {temperature: 600, walkers: 2}
gate: {name: threshold, limit: 0.0, every: 4, implausible: 50}
label: {initial: 4}
train: {steps: 4, initial_steps: 40, final_steps: 20, batch: 2, learning_rate: 0.01, holdout: 0.2}
stop: {labels: 64}
output: {checkpoint: 0, trajectory: 5}
"""

# many segments, to be killed between; all whole runs that may be alike are: a session compiles their program once
BRIEF = WATER.replace("{initial: 4}", "{initial: 4, batch: 1}").replace("{labels: 64}", "{labels: 32}")


def jaxal(*arguments: object, check: bool = True, run=here) -> subprocess.CompletedProcess:
    part = ("--part", SMALL) if arguments[0] in ("run", "train") else ()
    process = run(*arguments, *part)
    assert not check or process.returncode == 0, process.stderr
    return process


EQUIVARIANT = "{cutoff: 3.0, channels: 2, l_max: 1, layers: 1, radial: 4, radial_hidden: 0}"


def folder(tmp_path: Path, text: str = WATER, atoms=None) -> Path:
    write(tmp_path / "water.xyz", atoms or molecule("H2O"), format="extxyz")
    (tmp_path / "config.yaml").write_text(text)
    return tmp_path / "config.yaml"


TIMES = {"wall", "busy", "idle", "worked"}


def metrics(directory: Path, without=frozenset(TIMES)) -> list[dict]:
    """Lines of metrics.jsonl without what is never the same twice."""
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in without} for line in lines]


def model_arrays(directory: Path) -> dict[str, np.ndarray]:
    with np.load(directory / "model.npz") as file:
        names = {str(row): leaf[0] for row, leaf in enumerate(json.loads(str(file["header"]))["leaves"])}
        return {names.get(name, name): file[name] for name in file.files}


def killed_after(config: Path, directory: Path, lines: int, part: Path = SMALL) -> None:
    """Starts a run and kills it, hard, when it has written so many metrics lines."""
    command = [sys.executable, "-m", "jaxal", "run", str(config), "--dir", str(directory), "--part", str(part)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    path = directory / "metrics.jsonl"
    end = time.monotonic() + 300
    while time.monotonic() < end and process.poll() is None:
        if path.exists() and path.read_text().count("\n") >= lines:
            break
        time.sleep(0.02)
    assert process.poll() is None, "the run was over before it could be killed"
    process.send_signal(signal.SIGKILL)
    process.wait()
