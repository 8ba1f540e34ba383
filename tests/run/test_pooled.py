"""Runs that do not wait for their labels: no label is lost or paid for twice, and with a lag the bits come again."""

import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from ase.build import molecule
from ase.io import read, write
from commands import SMALL, here
from run_example import EQUIVARIANT, WATER, folder, jaxal, killed_after, metrics, model_arrays

from jaxal.config.check import check
from jaxal.config.loading import load
from jaxal.config.systems import populations
from jaxal.core.types import InputError
from jaxal.data import queue
from jaxal.data.frames import of_atoms
from jaxal.data.structure import from_frames, species_table
from jaxal.label.store.conversion import task_of
from jaxal.label.store.database import open_store
from jaxal.label.task import Result
from jaxal.label.workers import dispatch
from jaxal.program import state as states
from jaxal.run import assembly, pooled, session

POOLED = WATER.replace("stop: {labels: 64}", "stop: {labels: 40}").replace(
    "label: {initial: 4}", "label: {initial: 4, mode: pooled, workers: 2, queue: 6, calibration: 0}"
)


def keys(directory: Path) -> list[str]:
    store = open_store(directory / "labels.sqlite")
    label_keys = [entry.key for entry in store.all() if len(entry.task.numbers) > 1]  # isolated atoms are not asked for
    store.close()
    return label_keys


def lines(directory: Path, kind: str) -> list[dict]:
    return [line for line in metrics(directory, without=()) if line["kind"] == kind]


def complete(directory: Path, labels: int) -> None:
    """Every label that was paid for is in the training set, and the files tell of the same ones."""
    stored, training = keys(directory), read(directory / "training.xyz", ":")
    assert len(stored) == len(set(stored)) == len(training) == labels
    numbers = [line["label"] for line in lines(directory, "label")]
    assert numbers == list(range(5, labels + 1))
    ledger = (directory / "asked.txt").read_text().split()
    assert set(ledger) <= set(stored) and max(Counter(ledger).values()) == 1


def test_a_pooled_run_learns_from_all_it_has_paid_for(tmp_path):
    out = tmp_path / "out"
    jaxal("run", folder(tmp_path, POOLED), "--dir", out)
    complete(out, 40)
    segments = lines(out, "segment")
    assert segments[-1]["running"] == 0 and max(line["waiting"] for line in segments) <= 6
    assert max(line["running"] for line in segments) >= 2 and segments[-1]["worked"] > 0
    assert segments[-1]["busy"] > 0 and segments[-1]["idle"] >= 0
    labels = lines(out, "label")
    assert all(line["ok"] and line["error"] >= line["rmse"] > 0 and line["score"] > 0 for line in labels)
    # walkers that are flagged go back: in a run whose every frame is flagged they never get far
    start, frames = read(tmp_path / "water.xyz"), read(out / "trajectory.xyz", ":")
    assert all(np.abs(frame.positions - start.positions).max() < 0.5 for frame in frames)
    assert "device idle" in (out / "report.html").read_text()


@pytest.mark.slow
def test_with_a_lag_a_killed_pooled_run_resumes_bit_for_bit(tmp_path):
    config = folder(tmp_path, POOLED.replace("queue: 6", "queue: 6, lag: 2"))
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    jaxal("run", config, "--dir", whole)
    killed_after(config, killed, 16)
    jaxal("resume", killed)
    expected, actual = model_arrays(whole), model_arrays(killed)
    for name in expected:
        np.testing.assert_array_equal(actual[name], expected[name], err_msg=name)
    for name in ("training.xyz", "trajectory.xyz"):
        assert (killed / name).read_bytes() == (whole / name).read_bytes(), name
    assert metrics(killed) == metrics(whole)
    assert sorted(keys(killed)) == sorted(keys(whole))
    complete(killed, 40)


@pytest.mark.slow
def test_labels_of_a_killed_run_are_learned_from_though_its_structures_do_not_come_again(tmp_path):
    """The checkpoint is older than the labels: what they are of is only in the store and the ledger."""
    config = folder(tmp_path, POOLED.replace("{checkpoint: 0,", "{checkpoint: 1000,"))
    out = tmp_path / "out"
    killed_after(config, out, 22)  # two lines are those of the isolated atoms
    before, ledger = keys(out), (out / "asked.txt").read_text().split()
    assert len(before) > 10
    jaxal("resume", out)
    assert set(before) <= set(keys(out))
    stored, training = keys(out), read(out / "training.xyz", ":")
    assert len(stored) == len(training) and 40 <= len(stored) <= 40 + len(ledger)


@pytest.mark.slow
def test_a_pooled_run_that_is_told_to_end_says_how_to_go_on(tmp_path):
    config, out = folder(tmp_path, POOLED.replace("labels: 40", "labels: 400")), tmp_path / "out"
    command = [sys.executable, "-m", "jaxal", "run", str(config), "--dir", str(out), "--part", str(SMALL)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    end = time.monotonic() + 300
    while time.monotonic() < end and not ((out / "metrics.jsonl").exists() and len(metrics(out)) > 12):
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=120)[1]
    assert process.returncode == 0 and f"jaxal resume {out}" in said
    jaxal("resume", out, "stop.labels=60")
    assert len(read(out / "training.xyz", ":")) == len(keys(out)) >= 60


@pytest.mark.slow
def test_two_runs_share_a_store_at_once(tmp_path):
    """One of them inline, one pooled; each finds what the other has paid for, and both know where their labels are."""
    config = folder(tmp_path, POOLED.replace("labels: 40", "labels: 24"))
    store, outs = tmp_path / "all.sqlite", [tmp_path / "one", tmp_path / "two"]
    start = ["run", str(config), "label.store=all.sqlite", "--part", str(SMALL)]
    inline, pooled = (
        [*start, f"label.mode={mode}", "--dir", str(out)] for mode, out in zip(("inline", "pooled"), outs, strict=True)
    )
    command = [sys.executable, "-m", "jaxal", *inline]
    other = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE)
    result = here(*pooled, folder=tmp_path)
    assert result.returncode == 0, result.stderr
    said = other.communicate(timeout=300)[1]
    assert other.returncode == 0, said.decode()
    assert not (outs[0] / "labels.sqlite").exists()
    opened = open_store(store)
    entries = [entry for entry in opened.all() if len(entry.task.numbers) > 1]
    known = {tuple(np.round(entry.task.position.ravel(), 4)) for entry in entries}
    assert opened.counts()["done"] == len(entries) + 2 == len(known) + 2  # and the isolated atoms, once
    opened.close()
    frames = [frame for out in outs for frame in read(out / "training.xyz", ":")]
    assert {tuple(np.round(frame.positions.ravel(), 4)) for frame in frames} == known
    assert 24 < len(known) <= len(frames) - 4  # at least the first four, from the same seed, were paid for once
    for out in outs:
        assert f"{len(known) + 2} done" in here("status", out).stdout


@pytest.mark.parametrize(
    ("label", "message"),
    [
        ("{name: tblite, mode: pooled}", "label.workers: 0 does not fit label.mode = pooled; give 1 or more"),
        ("{name: stillinger_weber, mode: pooled}", "label.mode: pooled does not fit an oracle"),
        ("{name: tblite, store: nowhere/all.sqlite}", "label.store: there is no folder nowhere; make it"),
        ("{name: tblite, lag: 2}", "label.lag: an inline run learns from each label at once"),
        ("{name: tblite, mode: later}", "label.mode: later does not fit; give inline or pooled"),
    ],
)
def test_what_does_not_fit_is_told_before_anything_is_calculated(tmp_path, label, message):
    config = folder(tmp_path, WATER.replace("{initial: 4}", label).replace("{name: bonds}", EQUIVARIANT))
    with pytest.raises(InputError, match=re.escape(message)):
        check(load(config))


# ---------------------------------------------------------------- waiting for labels

ENERGY = -1.5


@pytest.fixture
def pooled_run(tmp_path) -> session.Run:
    write(tmp_path / "water.xyz", molecule("H2O"))
    (tmp_path / "config.yaml").write_text(
        "{system: {file: water.xyz}, explore: {walkers: 2}, label: {mode: pooled, workers: 1, lag: 2}, devices: 1}"
    )
    config = load(tmp_path / "config.yaml")
    systems = populations(config)
    return session.Run(config, tmp_path, systems, [[0]], species_table(systems[0].starts), lambda status: None, 0.0)


def waiting(tickets: list[int]) -> states.State:
    """A state with these labels at work, of water that is shifted by its ticket."""
    frames = [of_atoms(molecule("H2O"), labeled=False) for _ in tickets]
    frames = [frame._replace(position=frame.position + ticket) for frame, ticket in zip(frames, tickets, strict=True)]
    number = len(tickets)
    rows = queue.Queue(
        from_frames(frames, (1, 8), dtype=np.float32),
        np.ones(number),
        np.arange(number) == 0,
        np.arange(number),
        np.array(tickets),
        np.ones(number, bool),
        np.full(number, -1),
        np.int32(max(tickets) + 1),
    )  # pyright: ignore[reportArgumentType]
    return states.State._make([None] * len(states.State._fields))._replace(queue=rows)  # pyright: ignore


def desk(*landings: list[dispatch.Landed], trouble: str = "") -> pooled.Desk:
    """Where one of these lists of labels lands at each look, and after them none."""
    coming = iter(landings)
    open_ = dispatch.Dispatch(lambda *_: None, lambda patience: next(coming, []), 1, lambda: trouble, lambda: None)
    return pooled.Desk(open_, None, [])  # pyright: ignore[reportArgumentType]


def landed(ticket: int, ok: bool = True, from_store: bool = False) -> dispatch.Landed:
    result = Result(ENERGY, np.full((3, 3), float(ticket)), np.zeros((3, 3)), ok, "" if ok else "no luck", 2.0)
    return dispatch.Landed(ticket, "key", result, from_store)


def at(look: int, begun: list[list[int]]) -> session.Progress:
    return session.Progress([-0.25, -0.5], "", [], [], look=look, begun=begun)


def test_a_label_that_is_due_is_waited_for_and_one_that_is_not_waits(pooled_run):
    """Two segments after its beginning, whatever has landed before."""
    board, lag = desk([landed(4)], [], [landed(3)]), 2 * assembly.LOOKS
    now = at(lag, [[3, 0], [4, assembly.LOOKS]])
    came = pooled.arrived(pooled_run, now, board, waiting([3, 4]), False)
    assert came is not None and came.ticket.tolist() == [3] and came.probe.tolist() == [True]
    assert list(board.early) == [4] and came.seconds == 2.0 and [seconds for _, seconds in board.times] == [2.0]
    np.testing.assert_allclose(came.energy, ENERGY + 0.25 * 2 + 0.5)  # relative to two hydrogens and an oxygen
    np.testing.assert_allclose(came.structure.position[0, 0], molecule("H2O").positions[0] + 3)
    later = pooled.arrived(
        pooled_run, at(lag, [[4, assembly.LOOKS]]), board, waiting([4]), True
    )  # in the end all are due
    assert later is not None and later.ticket.tolist() == [4]


def test_a_failed_label_and_one_of_the_store_cost_no_time(pooled_run):
    board = desk([landed(3, ok=False), landed(4, from_store=True)])
    came = pooled.arrived(pooled_run, at(0, [[3, 0], [4, 0]]), board, waiting([3, 4]), True)
    assert came is not None and came.ok.tolist() == [False, True] and came.reasons == ["no luck", ""]
    assert came.seconds == 2.0 and board.times == []


def test_nothing_is_due_nothing_comes(pooled_run):
    assert pooled.arrived(pooled_run, at(1, [[3, 0]]), desk(), waiting([3]), False) is None


def test_who_is_told_to_end_waits_no_longer(pooled_run):
    interrupted = pooled_run._replace(interrupted=lambda: True)
    assert pooled.arrived(interrupted, at(0, [[3, 0]]), desk(), waiting([3]), True) is None


def test_labels_that_cannot_be_had_any_more_end_the_run(pooled_run):
    with pytest.raises(
        InputError, match=r"^no license; the last checkpoint stands, `jaxal resume .*` goes on from it$"
    ):
        pooled.arrived(pooled_run, at(0, [[3, 0]]), desk(trouble="no license"), waiting([3]), True)


def test_a_ledger_of_another_run_is_told(pooled_run):
    store = open_store(pooled_run.store)
    known = task_of(of_atoms(molecule("H2O"), labeled=False))
    result = Result(ENERGY, np.zeros((3, 3)), np.zeros((3, 3)), True, "", 1.0)
    own = store.put(known, result, "method", "1")
    other = store.put(known._replace(charge=1, spin=1), result, "method", "1")
    store.close()
    structure = pooled._structure(pooled_run, own)
    np.testing.assert_allclose(structure.position, known.position, rtol=1e-6)
    assert structure.species.tolist() == [1, 0, 0]
    with pytest.raises(InputError, match=rf"labels\.sqlite: label {other.key} is of none of the run's systems"):
        pooled._structure(pooled_run, other)
