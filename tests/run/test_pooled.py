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
from ase.io import read
from commands import SMALL, here
from run_example import EQUIVARIANT, WATER, folder, jaxal, killed_after, metrics, model_arrays

from jaxal.config.check import check
from jaxal.config.loading import load
from jaxal.core.types import InputError
from jaxal.label.store.database import open_store

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
