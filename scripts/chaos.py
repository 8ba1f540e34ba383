"""Breaks short runs with GFN2 labels on purpose and says what is lost: nothing should be.

    python scripts/chaos.py --kills 100      SIGKILL at random moments, inline and pooled, resumed; two systems
    python scripts/chaos.py --labels         30 % of the labels fail, in five ways

With --kills a run is killed and resumed until it ends, half of the times at moments drawn evenly from the time the
unbroken run takes, from its imports to its report, half from the time after it has begun to explore; then a new one is
begun, until all kills are spent: inline, pooled with a lag, and pooled in turn. Each of the first two that ended must
equal the unbroken run: model, training set, trajectory, metrics and the last checkpoint (walkers, weights, training
set) bit for bit, the same labels in the store. The third, whose labels come when they come, must have learned from
every label in the store. Labels are counted twice: by the store, and by the labeler itself in a file of its own. A
calculation that had just ended when the kill came, before its label was committed, is the only one that may be found
twice, at most one for each kill and worker.

With --labels a run whose labels fail is set beside one whose labels do not: it must end, its force RMSE on frames of
GFN2 dynamics must be that of the other within half of it, and every failure must be in the store with a reason.

The last line is the verdict; the exit status is 0 if all held.
"""

import argparse
import collections
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
from ase import units
from ase.build import molecule
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import read, write
from ase.md.langevin import Langevin
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution
from chaos_labels import fate
from tblite.ase import TBLite

from jaxal.label.store.database import open_store
from jaxal.run import checkpoint

CHILD = "import chaos_labels; from jaxal.cli.main import main; raise SystemExit(main())"
ONE = "system: {file: water.xyz}"
TWO = "systems: {water: {file: water.xyz}, dimer: {file: dimer.xyz, explore: {temperature: 300}}}"
CONFIG = """
SYSTEMS
potential: {cutoff: 3.0, channels: 4, l_max: 1, layers: 1, radial: 4, radial_hidden: 0}
committee: {members: 2}
explore: {temperature: 600, walkers: 2}
gate: {name: threshold, limit: 0.0, every: 4, implausible: 50}
label: LABEL
train: {steps: 20, initial_steps: 100, final_steps: 200, batch: 4, learning_rate: 0.01, holdout: 0.2}
stop: {labels: BUDGET}
output: {checkpoint: 0, trajectory: 5}
"""
TIMES = ("wall", "busy", "idle", "worked")  # in metrics.jsonl, never the same twice
# what a run needs to learn water well enough for its errors to tell good labels from bad ones
LEARN = ("potential.channels=16", "potential.l_max=2", "potential.radial=8", "train.steps=60", "train.final_steps=2000")
ENVIRONMENT = os.environ | {
    "JAX_PLATFORMS": "cpu",
    "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]),
}


WORKERS = 2
# a pooled run with a lag has the same bits again; without one it must lose no label
MODES = {
    "inline": "",
    "pooled with a lag": f", mode: pooled, workers: {WORKERS}, queue: 8, lag: 2",
    "pooled": f", mode: pooled, workers: {WORKERS}, queue: 8",
}


def command(*arguments: object) -> list[str]:
    """One of jaxal's commands, with the labelers of `chaos_labels`."""
    return [sys.executable, "-c", CHILD, *map(str, arguments)]


def written(folder: Path, label: str, budget: int, systems: str) -> Path:
    """A configuration of water, and of its dimer, in `folder`."""
    folder.mkdir()
    water, other = molecule("H2O"), molecule("H2O")
    other.positions += (0.0, 0.0, 2.9)
    write(folder / "water.xyz", water, format="extxyz")
    write(folder / "dimer.xyz", water + other, format="extxyz")
    text = CONFIG.replace("SYSTEMS", systems).replace("LABEL", label).replace("BUDGET", str(budget))
    (folder / "config.yaml").write_text(text)
    return folder / "config.yaml"


def go(*arguments: object) -> None:
    """Runs a command to its end."""
    process = subprocess.run(command(*arguments), env=ENVIRONMENT, capture_output=True, text=True)
    if process.returncode:
        raise SystemExit(
            f"chaos: jaxal {' '.join(map(str, arguments))} ended with {process.returncode}:\n{process.stderr}"
        )


def arrays(run: Path) -> dict[str, np.ndarray]:
    """Model and last checkpoint of a run, array by array."""
    with np.load(run / "model.npz") as file:
        model = {name: file[name] for name in file.files}
    return model | {f"checkpoint {k}": v for k, v in checkpoint.newest(run / "checkpoints").arrays.items()}


def texts(run: Path) -> dict[str, object]:
    """Files of a run that must be the same to the byte, and its metrics without wall times."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    contents: dict[str, object] = {name: (run / name).read_bytes() for name in ("training.xyz", "trajectory.xyz")}
    return contents | {"metrics": [{k: v for k, v in line.items() if k not in TIMES} for line in lines]}


def same(array: np.ndarray, other: np.ndarray) -> bool:
    """Whether two arrays are the same to the bit."""
    return (array.dtype, array.shape, array.tobytes()) == (other.dtype, other.shape, other.tobytes())


def differences(run: Path, whole: Path) -> list[str]:
    """What of a run is not as in the unbroken one."""
    mine, other = arrays(run), arrays(whole)
    wrong = sorted(mine.keys() ^ other.keys())
    # the digest of a checkpoint, which is of its wall times, too, is checked when it is read
    wrong += [name for name in mine.keys() & other.keys() if not same(mine[name], other[name])]
    first, second = texts(run), texts(whole)
    return wrong + [name for name in first if first[name] != second[name]]


def keys(run: Path) -> list[str]:
    """Keys of the labels in a store."""
    store = open_store(run / "labels.sqlite")
    try:
        return [entry.key for entry in store.all()]
    finally:
        store.close()


def phase(run: Path, errors: Path) -> str:
    """What a run that was killed had been doing."""
    if (run / "checkpoints").is_dir() and any("tmp" in path.name for path in (run / "checkpoints").iterdir()):
        return "checkpoint"
    words = [line.split("  ")[0].split(" ", 1) for line in errors.read_text().splitlines() if line[:1].isdigit()]
    return words[-1][1] if words and len(words[-1]) == 2 else "start"


class Whole(NamedTuple):
    """An unbroken run, which those that are killed are compared with."""

    run: Path
    duration: float  # s, from the start of the process to its end
    exploring: float  # s, from the first segment to the end
    keys: list[str]


def unbroken(mode: str, budget: int, folder: Path) -> Whole:
    """Runs a mode to its end, twice: the second finds its programs compiled, as all that follow do."""
    home = folder / f"whole {mode}"
    config = written(home, label_of(mode, home), budget, TWO)
    go("run", config, "--dir", home / "warm")
    (home / "log").unlink()
    began = time.monotonic()
    go("run", config, "--dir", home / "run")
    duration = time.monotonic() - began
    lines = [json.loads(line) for line in (home / "run" / "metrics.jsonl").read_text().splitlines()]
    walls = {line["phase"]: line["wall"] for line in lines if line["kind"] == "phase"}
    whole = Whole(home / "run", duration, walls["done"] - walls["explore"], sorted(keys(home / "run")))
    print(f"unbroken, {mode}: {duration:.1f} s, {len(whole.keys)} labels", flush=True)
    return whole


def label_of(mode: str, home: Path) -> str:
    """The section of the labels; the labeler takes down in a file of its own what it calculates."""
    return f'{{name: counted, initial: 4, log: "{home / "log"}"{MODES[mode]}}}'


def broken(mode: str, whole: Whole, most: int, rng: random.Random, home: Path, budget: int) -> tuple[int, list[str]]:
    """One run, killed at most so many times before it may end: its status, and what each kill found it doing."""
    config, run, moments = written(home, label_of(mode, home), budget, TWO), home / "run", []
    while True:
        words = ("resume", run) if (run / "config.yaml").exists() else ("run", config, "--dir", run)
        with (home / "errors").open("w") as errors:
            process = subprocess.Popen(
                command(*words), env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=errors, text=True
            )
            early = rng.random() < 0.5
            while not early and process.poll() is None and "explore" not in (home / "errors").read_text():
                time.sleep(0.02)
            longest = whole.duration if early else whole.exploring
            try:
                return process.wait(rng.uniform(0.0, longest) if len(moments) < most else None), moments
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                moments.append(phase(run, home / "errors"))


def calibrating(run: Path) -> int:
    """How many labels a run does not learn from: those of its bound, and its isolated atoms."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    atoms = sum(line["kind"] == "atom" for line in lines)
    return atoms + sum(line["labels"] for line in lines if line["kind"] == "calibration")


def faults(mode: str, whole: Whole, home: Path, times: int) -> tuple[list[str], int]:
    """What is wrong with a run that was killed so many times, and how many labels it calculated again."""
    run, problems = home / "run", []
    calculated = collections.Counter((home / "log").read_text().split())
    stored = sorted(keys(run))
    again = sum(calculated.values()) - len(calculated)
    if mode == "pooled":  # its order, and with it what it asks for, is a matter of time
        learned, bound = len(read(run / "training.xyz", ":")), calibrating(run)
        if learned + bound != len(stored) or len(stored) < len(whole.keys):
            problems.append(
                f"{len(stored)} labels in the store, {learned} learned from, {bound} for the bound, "
                f"{len(whole.keys)} to be had"
            )
    else:
        problems += [f"{name} differs" for name in differences(run, whole.run)]
        if stored != whole.keys:
            problems.append(f"{len(stored)} labels in the store, {len(whole.keys)} in the unbroken run's")
    if set(stored) ^ set(calculated):
        problems.append("store and labeler do not tell of the same labels")
    if again > times * (1 if mode == "inline" else WORKERS):
        problems.append(f"{again} labels calculated twice in {times} kills")
    return problems, again


def kills(number: int, budget: int, seed: int, folder: Path) -> tuple[bool, str]:
    """Whether no killed run lost anything, and a line that says so."""
    rng = random.Random(seed)
    wholes = {mode: unbroken(mode, budget, folder) for mode in MODES}
    moments: collections.Counter[str] = collections.Counter()
    ended: collections.Counter[str] = collections.Counter()
    problems, again = [], 0
    while moments.total() < number:
        mode = list(MODES)[ended.total() % len(MODES)]
        home = folder / f"broken {ended.total()}"
        left = number - moments.total()
        # evenly over the modes: many short sittings of one run are as good as many runs
        status, here = broken(mode, wholes[mode], min(left, max(1, number // 12)), rng, home, budget)
        moments.update(here)
        ended[mode] += 1
        if status:
            wrong = [f"status {status}: {(home / 'errors').read_text().strip()[-300:]}"]
        else:
            wrong, twice = faults(mode, wholes[mode], home, len(here))
            again += twice
        problems += [f"{home.name}, {mode}: {what}" for what in wrong]
        said = "; ".join(wrong) or ("nothing lost" if mode == "pooled" else "bit for bit as it should be")
        print(f"{moments.total()} kills, {home.name}, {mode}: {len(here)} kills, {said}", flush=True)
        shutil.rmtree(home)
    for problem in problems:
        print(problem)
    where = ", ".join(f"{count} in {name}" for name, count in moments.most_common())
    runs = ", ".join(f"{count} {mode}" for mode, count in ended.items())
    line = (
        f"{moments.total()} kills ({where}), {ended.total()} runs ({runs}) of {budget} labels, {len(problems)} "
        f"problems, {again} labels calculated again because the kill came before their commit"
    )
    return not problems, line


def frames(number: int, seed: int) -> list:
    """Frames of water from GFN2 dynamics at 600 K, labeled."""
    atoms = molecule("H2O")
    atoms.calc = TBLite(method="GFN2-xTB", verbosity=0)
    rng = np.random.default_rng(seed)
    MaxwellBoltzmannDistribution(atoms, temperature_K=600, rng=rng)
    dynamics = Langevin(atoms, 0.5 * units.fs, temperature_K=600, friction=0.02 / units.fs, rng=rng, fixcm=False)
    samples = []
    for _ in range(number):
        dynamics.run(40)
        frame = atoms.copy()
        energy, force = atoms.get_potential_energy(), atoms.get_forces()
        frame.calc = SinglePointCalculator(frame, energy=energy, forces=force)
        samples.append(frame)
    return samples


def labels(share: float, budget: int, seed: int, folder: Path) -> tuple[bool, str]:
    """Whether a run of failing labels ends as well as one of good ones, and a line that says so."""
    error, problems = {}, []
    log = folder / "log"
    # a method that fails on the start structure is a mistake, which a run refuses
    start = np.asarray(molecule("H2O").positions, np.float32).astype(np.float64)
    salt = next(salt for salt in range(seed, seed + 100) if not fate(start, share, salt))
    write(folder / "test.xyz", frames(100, seed), format="extxyz")
    for name, part in (("good", 0.0), ("failing", share)):
        label = f'{{name: failing, initial: 8, workers: 2, timeout: 5, share: {part}, salt: {salt}, log: "{log}"}}'
        # as many good labels for both: failed ones count toward the budget
        config = written(folder / name, label, round(budget / (1 - part)), ONE)
        go(
            "run",
            config,
            *LEARN,
            f"validate.data={folder / 'test.xyz'}",
            f"seed={seed}",
            "--dir",
            folder / name / "run",
        )
        validation = json.loads((folder / name / "run" / "validate.json").read_text())
        error[name] = 1e3 * validation["errors"]["force"]["rmse"]
    chosen = dict(line.split() for line in log.read_text().splitlines())
    store = open_store(folder / "failing" / "run" / "labels.sqlite")
    entries = {entry.key: entry for entry in store.all()}
    store.close()
    for key, kind in chosen.items():
        if key not in entries or entries[key].status == "done" or not entries[key].result.reason:
            problems.append(f"a label that was to fail ({kind}) is {entries[key].status if key in entries else 'lost'}")
    extra = [e.result.reason for e in entries.values() if e.status != "done" and e.key not in chosen]
    reasons = {kind: entries[key].result.reason for key, kind in chosen.items() if key in entries}
    for kind, reason in reasons.items():
        print(f"{kind}: {reason}")
    if error["failing"] > 1.5 * error["good"]:
        problems.append("the run of failing labels learned worse")
    for problem in problems:
        print(problem)
    kinds = ", ".join(f"{count} {kind}" for kind, count in collections.Counter(chosen.values()).items())
    line = (
        f"{len(chosen)} of {len(entries)} labels made to fail ({kinds}) and {len(extra)} others, each with a reason; "
        f"force RMSE {error['failing']:.0f} meV/Å, without failures {error['good']:.0f}; {len(problems)} problems"
    )
    return not problems, line


def main() -> int:
    """Runs what is asked for; returns the exit status."""
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--kills", type=int, default=0, help="how many")
    words.add_argument("--labels", action="store_true", help="let labels fail")
    words.add_argument("--share", type=float, default=0.3, help="of labels that fail")
    words.add_argument("--budget", type=int, default=64, help="labels of a run")
    words.add_argument("--seed", type=int, default=0)
    arguments = words.parse_args()
    if not arguments.kills and not arguments.labels:
        words.error("give --kills N or --labels")
    good = True
    for wanted, function, amount in (
        (arguments.kills, kills, arguments.kills),
        (arguments.labels, labels, arguments.share),
    ):
        if wanted:
            with tempfile.TemporaryDirectory(prefix="chaos-") as folder:
                passed, line = function(amount, arguments.budget, arguments.seed, Path(folder))
            print(f"{'PASSED' if passed else 'FAILED'}: {line}", flush=True)
            good &= passed
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
