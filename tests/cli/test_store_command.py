"""`jaxal store`: what it shows, what it refuses, and that two processes may use one store."""

import json
import os
import sqlite3
import subprocess
import sys
import time

import pytest
from ase.build import molecule
from ase.io import write
from store_example import done, entries, filled, good, labeled, mixed_store, refused, water

from jaxal.cli import store_command
from jaxal.cli.main import main

# A writer in another process: labels at x = 0, 1, ... of what it is told.
CHILD = """
import sys
import numpy as np
from jaxal.label.store.database import open_store
from jaxal.label.task import OPEN, Result, Task
store = open_store(sys.argv[1])
print("open", flush=True)
for i in range(int(sys.argv[2]), int(sys.argv[3])):
    task = Task(np.array([8, 1, 1]), np.arange(9.0).reshape(3, 3) + i, *OPEN, 0, 0)
    store.put(task, Result(float(i), np.full((3, 3), i), np.zeros((3, 3)), True, "", 0.5), "method", "code 1.0")
sys.stdin.read()
"""


@pytest.fixture
def path(tmp_path):
    return tmp_path / "labels.sqlite"


@pytest.fixture
def mixed(path):
    return mixed_store(path)


def test_what_is_no_store_is_refused_in_one_line(tmp_path, capsys, monkeypatch, path):
    notes, foreign, later = tmp_path / "notes.sqlite", tmp_path / "foreign.sqlite", filled(tmp_path / "later.sqlite")
    notes.write_text("not a database at all\n" * 200)
    with sqlite3.connect(foreign) as connection:
        connection.execute("CREATE TABLE other (a)")
    with sqlite3.connect(later) as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()
    (tmp_path / "empty").mkdir()
    data = tmp_path / "data.xyz"
    write(data, labeled(molecule("H2O")))
    filled(path, (water(), good(-1.0)))
    before = {file: file.read_bytes() for file in (notes, foreign, later)}
    for file, what in (
        (notes, "not a label store"),
        (foreign, "an SQLite file, but not a label store"),
        (later, "label store of schema 99, this one reads 1 to 3; a later jaxal has written it"),
    ):
        for words in (
            ("list", file),
            ("cost", file),
            ("export", file, tmp_path / "out.xyz"),
            ("import", file, data, "--method", "m", "--version", "1"),
            ("merge", file, path),
            ("merge", path, file),
        ):
            line = refused(capsys, "store", *words)
            assert what in line and str(file) in line
        assert file.read_bytes() == before[file]
    for words in (("list", tmp_path / "none"), ("cost", tmp_path / "empty"), ("export", tmp_path / "empty", "o.xyz")):
        assert "there is no such file; give a label store" in refused(capsys, "store", *words)
    assert "folder must exist" in refused(capsys, "store", "merge", tmp_path / "none" / "labels.sqlite", path)
    assert not (tmp_path / "empty" / "labels.sqlite").exists()


def test_a_locked_store_is_read_and_not_written(tmp_path, capsys, monkeypatch, mixed):
    monkeypatch.setattr(store_command, "WAIT", 0.1)
    write(tmp_path / "data.xyz", labeled(molecule("H2O")))
    more = filled(tmp_path / "more.sqlite", (water(7), good(-7.0)))
    with sqlite3.connect(mixed, isolation_level=None) as other:
        other.execute("BEGIN IMMEDIATE")
        assert "2 done" in done(capsys, "store", "list", mixed)
        for words in (
            ("import", mixed, tmp_path / "data.xyz", "--method", "m", "--version", "1"),
            ("merge", mixed, more),
        ):
            line = refused(capsys, "store", *words)
            assert line == f"{mixed}: another process has kept it locked for 0.1 s; try again when it is done"
        other.execute("ROLLBACK")
    other.close()
    assert len(entries(mixed)) == 4


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder_is_read_and_not_written(tmp_path, capsys, mixed):
    more = filled(tmp_path.with_name("more.sqlite"), (water(7), good(-7.0)))
    tmp_path.chmod(0o500)
    try:
        assert "2 done" in done(capsys, "store", "list", mixed)
        assert "writable" in refused(capsys, "store", "merge", mixed, more)
        assert "writable" in refused(capsys, "store", "merge", tmp_path / "new.sqlite", more)
        assert "cannot be written" in refused(capsys, "store", "export", mixed, tmp_path / "out.xyz")
    finally:
        tmp_path.chmod(0o700)


def test_a_store_that_may_not_be_written_is_read(capsys, monkeypatch, mixed):
    monkeypatch.setattr(os, "access", lambda *arguments: False)
    assert done(capsys, "store", "list", mixed).endswith("2 done, 1 rejected, 1 failed\n")
    assert not list(mixed.parent.glob("labels.sqlite-*"))


def test_no_label_is_lost_between_processes(tmp_path, capsys, path):
    """Two write to the store, and it is read, merged into and merged from at the same time."""
    arguments = [sys.executable, "-c", CHILD, path]
    more = filled(tmp_path / "more.sqlite", *((water(i), good(float(i))) for i in range(500, 530)))
    children = [
        subprocess.Popen([*map(str, arguments), low, high], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for low, high in (("0", "80"), ("40", "120"))
    ]
    assert [child.stdout.readline() for child in children if child.stdout] == ["open\n", "open\n"]
    done(capsys, "store", "merge", path, more)
    deadline = time.monotonic() + 60
    while json.loads(done(capsys, "store", "list", path, "--limit", 1, "--json"))["counts"]["done"] < 150:
        assert time.monotonic() < deadline
        done(capsys, "store", "merge", tmp_path / "copy.sqlite", path)  # of a store in use, its log not yet folded in
    assert path.with_name("labels.sqlite-wal").exists()
    done(capsys, "store", "merge", tmp_path / "copy.sqlite", path)
    for child in children:
        child.communicate(timeout=60)
        assert child.returncode == 0
    expected = [*range(120), *range(500, 530)]
    for store in (path, tmp_path / "copy.sqlite"):
        assert sorted(entry.result.energy for entry in entries(store)) == expected


def test_list_and_cost(capsys, mixed):
    lines = done(capsys, "store", "list", mixed).splitlines()
    assert lines[0].split()[:4] == ["row", "formula", "charge", "spin"] and len(lines) == 6
    assert "no luck" in lines[2] and "-1.000000" in lines[1] and lines[-1] == "2 done, 1 rejected, 1 failed"
    (row,) = json.loads(done(capsys, "store", "list", mixed, "--limit", 1, "--json"))["rows"]
    assert (row["row"], row["formula"], row["charge"], row["method"], row["energy"]) == (4, "H", -1, "other", -0.5)
    listing = json.loads(done(capsys, "store", "list", mixed, "--status", "rejected", "--json"))
    assert [row["reason"] for row in listing["rows"]] == ["a force is too large"]
    assert listing["counts"] == {"done": 2, "rejected": 1, "failed": 1}
    costs = json.loads(done(capsys, "store", "cost", mixed, "--json"))
    assert (costs["total"]["number"], costs["total"]["total"]) == (4, 8.25)
    groups = {(group["method"], group["status"]): group for group in costs["methods"]}
    assert set(groups) == {("method", "done"), ("method", "rejected"), ("method", "failed"), ("other", "done")}
    assert groups["method", "failed"]["mean"] == 4.0 and groups["other", "done"]["atoms"][0]["atoms"] == 1
    text = done(capsys, "store", "cost", mixed).splitlines()
    assert len(text) == 10 and text[-1] == "4 labels, 0.002292 h of wall time"
    for words in (
        ("store",),
        ("store", "list"),
        ("store", "list", "x", "--limit", "0"),
        ("store", "list", "x", "--status", "y"),
    ):
        with pytest.raises(SystemExit) as caught:
            main(words)
        assert caught.value.code == 2
    capsys.readouterr()
