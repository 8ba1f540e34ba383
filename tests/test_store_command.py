"""`jaxal store` and `jaxal status`: what they show, what they refuse, and that no label and no bit is lost."""

import fcntl
import json
import os
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import ase
import numpy as np
import pytest
from ase.build import bulk, molecule
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import read, write

from jaxal import setup, status, store_command
from jaxal.cli import main
from jaxal.config import load
from jaxal.label import exchange
from jaxal.label.service import label_service
from jaxal.label.store import Entry, label_key, open_store
from jaxal.label.task import Backend, Result, Task, failed
from jaxal.types import Structure

ME = "method", "code 1.0"
# A writer in another process: labels at x = 0, 1, ... of what it is told.
CHILD = """
import sys
import numpy as np
from jaxal.label.store import open_store
from jaxal.label.task import Result, Task
store = open_store(sys.argv[1])
print("open", flush=True)
for i in range(int(sys.argv[2]), int(sys.argv[3])):
    task = Task(np.array([8, 1, 1]), np.arange(9.0).reshape(3, 3) + i, np.zeros((3, 3)), 0, 0)
    store.put(task, Result(float(i), np.full((3, 3), i), np.zeros((3, 3)), True, "", 0.5), "method", "code 1.0")
sys.stdin.read()
"""


def water(x: float = 0.0, **changes) -> Task:
    return Task(np.array([8, 1, 1]), np.arange(9.0).reshape(3, 3) + x, np.zeros((3, 3)), 0, 0)._replace(**changes)


def good(energy: float, seconds: float = 0.5) -> Result:
    return Result(energy, np.full((3, 3), energy), np.zeros((3, 3)), True, "", seconds)


def filled(path: Path, *rows: tuple[Task, Result], method: tuple[str, str] = ME) -> Path:
    """A store with these rows."""
    store = open_store(path)
    for task, result in rows:
        store.put(task, result, *method)
    store.close()
    return path


def entries(path: Path) -> list[Entry]:
    store = open_store(path)
    found = list(store.all())
    store.close()
    return found


def done(capsys, *arguments: object) -> str:
    """What a command prints that succeeds."""
    assert main([str(argument) for argument in arguments]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    return out


def refused(capsys, *arguments: object) -> str:
    """The one line of a command that is refused."""
    assert main([str(argument) for argument in arguments]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("jaxal: error: ") and err.count("\n") == 1
    return err.removeprefix("jaxal: error: ").rstrip()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "labels.sqlite"


@pytest.fixture
def mixed(path):
    """Done, failed and rejected rows of two sizes."""
    filled(path, (water(0), good(-1.0, 1.0)), (water(1), failed(water(1), "no luck", 4.0)), (water(2), good(-2.0, 3.0)))
    one = Task(np.array([1]), np.zeros((1, 3)), np.zeros((3, 3)), -1, 0)
    filled(path, (one, Result(-0.5, np.zeros((1, 3)), np.zeros((3, 3)), True, "", 0.25)), method=("other", "2"))
    store = open_store(path)
    store.judge(label_key(water(2), *ME), "rejected", "a force is too large")
    store.close()
    return path


def odd_rows() -> list[tuple[Task, Result]]:
    """Structures whose numbers need every digit, one periodic with a stress that is symmetric but for rounding."""
    rng, rows = np.random.default_rng(0), []
    for number in range(6):
        task = water(position=rng.normal(size=(3, 3)) * 10.0 ** rng.integers(-3, 3), charge=number - 2, spin=number % 2)
        if number % 2:
            task = task._replace(cell=np.eye(3) * 7 + rng.normal(size=(3, 3)) / 3)
        # half of a step of the key's rounding: the digits decide on which side it falls
        task.position[0, 0] = 1.0000005 + 1e-16 * number
        stress = rng.normal(size=(3, 3)) if number % 2 else np.zeros((3, 3))
        stress = stress + stress.T if number == 3 else stress
        rows.append((task, Result(rng.normal() * 1e4, rng.normal(size=(3, 3)), stress, True, "", 1 / 3)))
    return rows


ODD = ('emt options={"a": [1, "b\\n"]} x = "y"', "1.10"), ("T", "1e5"), ("[ω] 'it''s'", " code\\"), ("plain", "2, 3")


@pytest.mark.parametrize("name", ["out.xyz", "out.extxyz.gz", "out.db"])
@pytest.mark.parametrize("method", ODD)
def test_export_and_import_keep_keys_and_bits(tmp_path, capsys, path, name, method):
    filled(path, *odd_rows(), method=method)
    assert done(capsys, "store", "export", path, tmp_path / name) == f"{tmp_path / name}: 6 labels\n"
    assert [p.name for p in tmp_path.glob("*.part")] == []
    out = done(capsys, "store", "import", tmp_path / "again.sqlite", tmp_path / name)
    assert "6 new labels, 0 in place of failed ones, 0 known before" in out
    assert "0 new labels, 0 in place of failed ones, 6 known before" in done(
        capsys, "store", "import", path, tmp_path / name
    )
    for before, after in zip(entries(path), entries(tmp_path / "again.sqlite"), strict=True):
        assert (after.key, after.method, after.version) == (before.key, *method)
        for one, other in zip((*before.task, *before.result), (*after.task, *after.result), strict=True):
            np.testing.assert_array_equal(one, other)


def test_exports_are_what_ase_reads(tmp_path, capsys, mixed):
    done(capsys, "store", "export", mixed, tmp_path / "a.xyz")
    frames = read(tmp_path / "a.xyz", ":")
    assert [atoms.get_potential_energy() for atoms in frames] == [-1.0, -0.5]
    np.testing.assert_array_equal(frames[0].get_forces(), np.full((3, 3), -1.0))
    info = frames[1].info
    assert (info["charge"], info["spin"], info["status"], info["method"]) == (-1, 0, "done", "other")
    assert info["key"] == entries(mixed)[3].key and not frames[0].pbc.any()
    done(capsys, "store", "export", mixed, tmp_path / "bad.xyz", "--status", "failed")
    (atoms,) = read(tmp_path / "bad.xyz", ":")
    assert atoms.calc is None and atoms.info["reason"] == "no luck"
    line = refused(capsys, "store", "import", tmp_path / "b.sqlite", tmp_path / "bad.xyz")
    assert "frame 0: its status is 'failed'" in line
    done(capsys, "store", "export", mixed, tmp_path / "r.xyz", "--status", "rejected")
    done(capsys, "store", "import", tmp_path / "b.sqlite", tmp_path / "r.xyz")
    (entry,) = entries(tmp_path / "b.sqlite")
    assert (entry.status, entry.result.reason, entry.result.energy) == ("rejected", "a force is too large", -2.0)


@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")
def test_export_replaces_a_file_only_if_told_and_only_by_a_whole_one(tmp_path, capsys, monkeypatch, mixed):
    file = tmp_path / "out.xyz"
    file.write_text("mine")
    assert refused(capsys, "store", "export", mixed, file) == f"{file}: is there already; --force replaces it"

    def broken(part, entries, name):
        part.write_text("half")
        next(entries)
        raise OSError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(exchange, "_write_xyz", broken)
        assert "cannot be written (OSError: No space" in refused(capsys, "store", "export", mixed, file, "--force")
    assert file.read_text() == "mine" and not list(tmp_path.glob("*.part"))
    done(capsys, "store", "export", mixed, file, "--force")
    assert len(read(file, ":")) == 2
    for name, what in (("out.pdb", "unknown kind of file"), ("none/out.xyz", "cannot be written"), ("none/o.db", "be")):
        assert what in refused(capsys, "store", "export", mixed, tmp_path / name)
    empty = filled(tmp_path / "empty.sqlite")
    assert "holds no label that is done" in refused(capsys, "store", "export", empty, tmp_path / "none.xyz")
    assert not (tmp_path / "none.xyz").exists() and not list(tmp_path.glob("*.part"))


def labeled(atoms: ase.Atoms, **changes) -> ase.Atoms:
    results = {"energy": -1.5, "forces": np.full((len(atoms), 3), 0.25)} | changes
    atoms.calc = SinglePointCalculator(atoms, **{name: value for name, value in results.items() if value is not None})
    return atoms


def test_a_run_finds_what_was_imported(tmp_path, capsys, path):
    """Positions of the program's precision, its method and version: nothing is calculated."""
    atoms = molecule("H2O")
    atoms.positions = np.float32(atoms.positions)
    write(tmp_path / "data.xyz", labeled(atoms, forces=np.array([[0.1, 0, 0], [-0.1, 0, 0], [0, 0, 0]])))
    done(capsys, "store", "import", path, tmp_path / "data.xyz", "--method", "mine", "--version", "1", "--charge", 1)
    called = []
    backend = Backend(lambda task: called.append(task) or failed(task, "called"), lambda task: None, "mine", "1")
    service = label_service(backend, table=(1, 8), store=path)
    structure = Structure(
        np.float32(atoms.positions)[None], np.array([[1, 0, 0]]), np.zeros((1, 3, 3), np.float32), *np.array([[1], [0]])
    )
    answer = service.label(structure, np.array([True]))
    service.close()
    assert answer.ok.all() and answer.energy[0] == np.float32(-1.5) and not called


def test_a_run_begins_in_a_folder_with_a_store_and_pays_only_for_what_it_lacks(tmp_path, capsys):
    write(tmp_path / "water.xyz", molecule("H2O"))
    config = tmp_path / "config.yaml"
    config.write_text(
        "system: {file: water.xyz}\nexplore: {walkers: 2}\n"
        "label: {name: ase, calculator: ase.calculators.emt.EMT, initial: 4}\n"
    )
    loaded, stores = load(config), [tmp_path / f"{name}.sqlite" for name in "ab"]
    first = setup.first_labels(loaded, molecule("H2O"), stores[0])
    done(capsys, "store", "export", stores[0], tmp_path / "first.xyz")
    done(capsys, "store", "import", stores[1], tmp_path / "first.xyz")
    before = entries(stores[1])
    again = setup.first_labels(loaded, molecule("H2O"), stores[1])
    np.testing.assert_array_equal(again.labels.energy, first.labels.energy)
    np.testing.assert_array_equal(again.labels.force, first.labels.force)
    assert [(e.row, e.created) for e in entries(stores[1])] == [(e.row, e.created) for e in before]
    (tmp_path / "run").mkdir()
    done(capsys, "store", "merge", tmp_path / "run", *stores)
    wrong = ("run", config, "label={name: stillinger_weber}", "--dir", tmp_path / "run")
    assert refused(capsys, *wrong).startswith("label: stillinger_weber: knows silicon only")  # the folder will do
    (tmp_path / "run" / "notes.txt").write_text("mine")
    assert "is not an empty folder" in refused(capsys, *wrong)


def test_import_takes_charge_and_spin_of_the_frame_and_leaves_known_labels_alone(tmp_path, capsys, path):
    own = labeled(molecule("H2O"))
    own.info |= {"charge": -1, "spin": 1}
    crystal = labeled(bulk("Si"), stress=np.arange(6.0))
    write(tmp_path / "data.traj", [labeled(molecule("H2O")), own, crystal, labeled(molecule("H2O"), energy=9.0)])
    task = Task(molecule("H2O").numbers, molecule("H2O").positions, np.zeros((3, 3)), 2, 2)
    filled(path, (task, failed(task, "no luck")))
    me = ("--method", ME[0], "--version", ME[1])
    out = done(capsys, "store", "import", path, tmp_path / "data.traj", *me, "--charge", "2", "--spin", "2")
    assert out == f"{path}: 2 new labels, 1 in place of failed ones, 1 known before\n"
    found = entries(path)
    assert [(e.row, e.task.charge, e.task.spin, e.status) for e in found] == [
        (1, 2, 2, "done"),
        (2, -1, 1, "done"),
        (3, 2, 2, "done"),
    ]
    assert found[0].result.energy == -1.5 and found[0].result.reason == ""
    np.testing.assert_array_equal(found[2].result.stress, [[0, 5, 4], [5, 1, 3], [4, 3, 2]])


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"energy": None}, "carries no energy; give `energy` or `REF_energy`"),
        ({"forces": None}, "carries no forces"),
        ({"energy": float("nan")}, "energy: not a finite number"),
        ({"forces": np.full((3, 3), np.nan)}, "forces: not a finite number"),
        ({"stress": np.full(6, np.inf)}, "stress: not a finite number"),
        ({"charge": 0.5}, "charge: 0.5 is not a whole number"),
        ({"spin": "up"}, "spin: 'up' is not a whole number"),
        ({"spin": -1}, "spin: -1 is no number of unpaired electrons"),
        ({"pbc": [True, True, False]}, "periodic in 2 directions"),
        ({"pbc": True}, "periodic, but without a cell"),
        ({"positions": np.full((3, 3), np.nan)}, "structure: a position or cell vector is not finite"),
    ],
)
def test_import_names_the_frame_and_writes_nothing(tmp_path, capsys, path, change, expected):
    bad = labeled(molecule("H2O"), **{k: v for k, v in change.items() if k in ("energy", "forces", "stress")})
    bad.info |= {name: change[name] for name in ("charge", "spin") if name in change}
    bad.pbc = change.get("pbc", False)
    if "positions" in change:
        bad.positions = change["positions"]
        bad.calc.atoms.positions = change["positions"]  # ASE forgets the results of atoms that have moved
    write(tmp_path / "data.traj", [labeled(molecule("H2O")), bad])
    line = refused(capsys, "store", "import", path, tmp_path / "data.traj", "--method", "m", "--version", "1")
    assert line.startswith(f"{tmp_path / 'data.traj'}: frame 1: {expected}")
    assert not path.exists()


def test_import_refuses_other_files_and_an_unknown_method(tmp_path, capsys, mixed):
    write(tmp_path / "data.xyz", labeled(molecule("H2O")))
    assert "frame 0: method: neither the frame" in refused(capsys, "store", "import", mixed, tmp_path / "data.xyz")
    line = refused(capsys, "store", "import", mixed, tmp_path / "data.xyz", "--method", "m", "--version", "")
    assert "version: neither" in line
    assert "there is no such file" in refused(capsys, "store", "import", mixed, tmp_path / "none.xyz")
    (tmp_path / "notes.xyz").write_text("not a structure")
    assert "ASE cannot read it" in refused(capsys, "store", "import", mixed, tmp_path / "notes.xyz")
    foreign = filled(tmp_path / "store.db", (water(), good(1.0)))  # SQLite, but not ASE's
    before = foreign.read_bytes()
    assert "ASE cannot read it" in refused(capsys, "store", "import", mixed, foreign)
    assert foreign.read_bytes() == before and len(entries(mixed)) == 4


def test_merge_keeps_the_better_status(tmp_path, capsys, mixed):
    other = filled(tmp_path / "other.sqlite", (water(0), good(-9.0)), (water(1), good(-3.0)), (water(2), good(-4.0)))
    worse = filled(tmp_path / "worse.sqlite", (water(0), failed(water(0), "late")), (water(5), failed(water(5), "x")))
    run = tmp_path / "run"
    run.mkdir()
    before = other.read_bytes(), worse.read_bytes()
    new = done(capsys, "store", "merge", run, mixed, other, worse)
    assert new == f"{run / 'labels.sqlite'}: 5 new labels, 2 in place of lesser ones, 2 known before\n"
    assert (other.read_bytes(), worse.read_bytes()) == before
    assert [(e.status, e.result.energy, e.result.reason) for e in entries(run / "labels.sqlite")] == [
        ("done", -1.0, ""),  # of equal ones the first
        ("done", -3.0, ""),
        ("done", -4.0, ""),
        ("done", -0.5, ""),
        ("failed", 0.0, "x"),
    ]
    first = entries(mixed)
    for here, there in zip((0, 3), (0, 3), strict=True):  # who calculated it, when and how long goes with it
        assert entries(run / "labels.sqlite")[here].created == first[there].created
    assert "0 new labels, 0 in place of lesser ones, 9 known" in done(
        capsys, "store", "merge", run, mixed, other, worse
    )


def test_merge_refuses_a_wrong_source_and_makes_nothing(tmp_path, capsys, mixed):
    target = tmp_path / "target.sqlite"
    (tmp_path / "notes.txt").write_text("not a database at all\n" * 200)
    for source, what in ((tmp_path / "notes.txt", "not a label store"), (tmp_path / "none", "there is no such file")):
        assert what in refused(capsys, "store", "merge", target, mixed, source)
    damaged = tmp_path / "damaged.sqlite"
    filled(damaged, *((water(i), good(float(i))) for i in range(60)))
    with open(damaged, "r+b") as file:
        file.seek(5 * 4096)
        file.write(b"\xff" * 4096 * 4)
    line = refused(capsys, "store", "merge", target, mixed, damaged)
    assert str(damaged) in line
    assert not list(tmp_path.glob("target*"))
    assert "would take its own labels" in refused(capsys, "store", "merge", mixed, mixed)
    assert not list(tmp_path.glob("labels.sqlite-*"))


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
        (later, "label store of schema 99, this program reads 1"),
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
    monkeypatch.setattr(os, "access", lambda *given: False)
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
    wanted = [*range(120), *range(500, 530)]
    for store in (path, tmp_path / "copy.sqlite"):
        assert sorted(entry.result.energy for entry in entries(store)) == wanted


def test_list_and_cost(capsys, mixed):
    lines = done(capsys, "store", "list", mixed).splitlines()
    assert lines[0].split()[:4] == ["row", "formula", "charge", "spin"] and len(lines) == 6
    assert "no luck" in lines[2] and "-1.000000" in lines[1] and lines[-1] == "2 done, 1 rejected, 1 failed"
    (row,) = json.loads(done(capsys, "store", "list", mixed, "--limit", 1, "--json"))["rows"]
    assert (row["row"], row["formula"], row["charge"], row["method"], row["energy"]) == (4, "H", -1, "other", -0.5)
    found = json.loads(done(capsys, "store", "list", mixed, "--status", "rejected", "--json"))
    assert [row["reason"] for row in found["rows"]] == ["a force is too large"]
    assert found["counts"] == {"done": 2, "rejected": 1, "failed": 1}
    found = json.loads(done(capsys, "store", "cost", mixed, "--json"))
    assert (found["total"]["number"], found["total"]["total"]) == (4, 8.25)
    groups = {(group["method"], group["status"]): group for group in found["methods"]}
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


CONFIG = """
explore: {timestep: 0.5}
stop: {labels: 100, time: 8.0, wall: null}
"""


@pytest.fixture
def run(tmp_path, mixed):
    """A run folder in the middle of its exploration, its last line half written."""
    (tmp_path / "config.yaml").write_text(CONFIG)
    lines = [{"kind": "phase", "wall": 5.0, "phase": "initial", "why": ""}]
    lines += [{"kind": "phase", "wall": 10.0, "phase": "explore", "why": ""}]
    for number in range(1, 4):
        wall = 10.0 + 10 * number
        lines.append({"kind": "label", "wall": wall, "label": number, "rmse": 0.1 * number, "ok": True})
        segment = {"kind": "segment", "wall": wall, "ps": number / 10, "labels": 20 + 10 * number, "flagged": 0.25}
        lines.append({**segment, "estimated": 0.2, "factor": 2.5, "unphysical": 0.0, "holdout_force_rmse": None})
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (tmp_path / "metrics.jsonl").write_text(text + '{"kind": "segment", "wall": 99')
    for number in ("20", "30", "30.orbax-checkpoint-tmp-1"):
        (tmp_path / "checkpoints" / number).mkdir(parents=True)
    os.utime(tmp_path / "checkpoints" / "30", (time.time() - 50,) * 2)
    return tmp_path


def test_status_of_a_run(capsys, run):
    before = {file: file.stat().st_mtime_ns for file in run.rglob("*")}
    found = json.loads(done(capsys, "status", run, "--json"))
    assert {file: file.stat().st_mtime_ns for file in run.rglob("*")} == before
    assert (found["phase"], found["elapsed"], found["ps"], found["labels"]) == ("explore", 40.0, 0.3, 50)
    assert (found["labels_budget"], found["ps_budget"], found["process"]) == (100, 8.0, {"running": False})
    assert [found["store"][name] for name in ("done", "rejected", "failed", "number")] == [2, 1, 1, 4]
    assert found["true"] == pytest.approx(0.3) and (found["factor"], found["flagged"]) == (2.5, 0.25)
    assert found["checkpoint"]["number"] == 30 and 49 < found["checkpoint"]["age"] < 60
    assert (found["eta"], found["by"]) == (pytest.approx(50.0), "labels")  # a label a second, 50 to go
    text = done(capsys, "status", run)
    for words in ("not running", "50 of 100", "0.30 of 8.00 ps", "25.0% of the looks", "0:50 of exploration"):
        assert words in text


def test_status_by_another_budget_and_of_a_finished_run(capsys, run):
    (run / "config.yaml").write_text("stop: {labels: 5000, time: 0.4, wall: 1000}")
    found = status.gather(run)
    assert found["by"] == "time" and found["eta"] == pytest.approx(10.0)
    (run / "config.yaml").write_text("stop: {labels: 5000, wall: 45}")
    assert status.gather(run)["by"] == "wall" and status.gather(run)["eta"] == pytest.approx(5.0)
    with open(run / "metrics.jsonl", "a") as file:
        file.write('\n{"kind": "phase", "wall": 41, "phase": "final training", "why": "quiet for 5 ps"}\n')
    assert status.gather(run)["eta"] is None and "final training (quiet for 5 ps)" in done(capsys, "status", run)


def test_status_tells_a_process_at_work(capsys, run):
    (run / "lock").write_text("")  # it stays when a run has ended
    assert status.gather(run)["process"] == {"running": False}
    with open(run / "lock", "a+") as file:  # flock belongs to the opened file: this process can play two
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        assert status.gather(run)["process"] == {"running": True, "pid": None, "host": None}
        file.write(json.dumps({"pid": 123, "host": "node7"}))
        file.flush()
        assert "running, process 123 on node7" in done(capsys, "status", run)
    with open(run / "lock") as file:  # somebody else who looks
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        assert "not running" in done(capsys, "status", run)


def test_status_at_the_beginning_and_with_damaged_files(capsys, run):
    (run / "metrics.jsonl").unlink()
    (run / "labels.sqlite").write_text("not a database" * 100)
    found = status.gather(run)
    assert found["phase"] == "beginning" and found["labels"] is None and found["elapsed"] is None
    assert "not a label store" in done(capsys, "status", run)
    (run / "labels.sqlite").unlink()
    (run / "metrics.jsonl").write_text('[]\n{"kind": "segment"}\n{"kind": "phase", "phase": null}\n\x00\n')
    assert done(capsys, "status", run)
    (run / "config.yaml").write_text("a: [")
    assert "config.yaml: cannot be read" in refused(capsys, "status", run)
    (run / "config.yaml").write_text("- 1")
    assert "not a configuration" in refused(capsys, "status", run)


def test_status_refuses_what_is_no_run(tmp_path, capsys):
    assert "there is no such folder" in refused(capsys, "status", tmp_path / "none")
    assert "not a run folder, it holds no config.yaml" in refused(capsys, "status", tmp_path)
    (tmp_path / "config.yaml").write_text(CONFIG)
    assert "holds a config.yaml but no run" in refused(capsys, "status", tmp_path)


def test_no_command_loads_jax(run):
    """They answer at once, also on a machine that is busy with the run."""
    code = """
import sys
from jaxal.cli import main
run = sys.argv[1]
words = ["status", run], ["store", "list", run], ["store", "cost", run], ["store", "export", run, run + "/out.xyz"]
found = [main(one) for one in words]
found += [main(["store", "import", run, run + "/out.xyz"]), main(["store", "merge", run + "/m.sqlite", run])]
assert main(["store", "list", "none"]) == 2
sys.exit(any(found) or "jax" in sys.modules)
"""
    child = subprocess.run([sys.executable, "-c", code, str(run)], capture_output=True, text=True, timeout=60)
    assert child.returncode == 0, child.stderr
