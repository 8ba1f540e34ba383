"""Labels in and out of a store: `jaxal store export`, `import` and `merge`. No label and no bit is lost."""

import warnings

import numpy as np
import pytest
from ase.build import bulk, molecule
from ase.io import read, write
from store_example import ME, done, entries, filled, good, labeled, mixed_store, refused, water
from structures import plain

from jaxal.cli.main import main
from jaxal.config.loading import load
from jaxal.config.systems import populations
from jaxal.core.errors import InputWarning
from jaxal.data import dataset, files
from jaxal.label.service import label_service
from jaxal.label.store import conversion
from jaxal.label.task import NO_STRESS, OPEN, Backend, Result, Task, failed
from jaxal.run import initial_labels


@pytest.fixture
def path(tmp_path):
    return tmp_path / "labels.sqlite"


@pytest.fixture
def mixed(path):
    return mixed_store(path)


def odd_rows() -> list[tuple[Task, Result]]:
    """Structures whose numbers need every digit, one periodic with a stress that is symmetric but for rounding."""
    rng, rows = np.random.default_rng(0), []
    for number in range(6):
        task = water(position=rng.normal(size=(3, 3)) * 10.0 ** rng.integers(-3, 3), charge=number - 2, spin=number % 2)
        if number % 2:
            task = task._replace(cell=np.eye(3) * 7 + rng.normal(size=(3, 3)) / 3, periodic=np.ones(3, bool))
        if number == 5:
            task = task._replace(periodic=np.array([True, False, True]))
        # half of a step of the key's rounding: the digits decide on which side it falls
        task.position[0, 0] = 1.0000005 + 1e-16 * number
        stress = rng.normal(size=(3, 3)) if number % 2 else NO_STRESS
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
        for old, new in zip((*before.task, *before.result), (*after.task, *after.result), strict=True):
            np.testing.assert_array_equal(old, new)


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
        patch.setattr(files, "_write_xyz", broken)
        assert "cannot be written (OSError: No space" in refused(capsys, "store", "export", mixed, file, "--force")
    assert file.read_text() == "mine" and not list(tmp_path.glob("*.part"))
    done(capsys, "store", "export", mixed, file, "--force")
    assert len(read(file, ":")) == 2
    for name, what in (("out.pdb", "unknown kind of file"), ("none/out.xyz", "cannot be written"), ("none/o.db", "be")):
        assert what in refused(capsys, "store", "export", mixed, tmp_path / name)
    empty = filled(tmp_path / "empty.sqlite")
    assert "holds no label that is done" in refused(capsys, "store", "export", empty, tmp_path / "none.xyz")
    assert not (tmp_path / "none.xyz").exists() and not list(tmp_path.glob("*.part"))


def test_a_run_takes_what_was_imported(tmp_path, capsys, path):
    """Positions of the program's precision, its method and version: nothing is calculated."""
    atoms = molecule("H2O")
    atoms.positions = np.float32(atoms.positions)
    write(tmp_path / "data.xyz", labeled(atoms, forces=np.array([[0.1, 0, 0], [-0.1, 0, 0], [0, 0, 0]])))
    electrons = ("--charge", 1, "--spin", 1)
    done(capsys, "store", "import", path, tmp_path / "data.xyz", "--method", "mine", "--version", "1", *electrons)
    called = []
    backend = Backend(lambda task: called.append(task) or failed(task, "called"), lambda task: None, "mine", "1")
    service = label_service(backend, table=(1, 8), store=path)
    structure = plain(
        np.float32(atoms.positions)[None], np.array([[1, 0, 0]]), np.zeros((1, 3, 3), np.float32), *np.array([[1], [1]])
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
    first = initial_labels.first_labels(loaded, populations(loaded), stores[0])
    done(capsys, "store", "export", stores[0], tmp_path / "first.xyz")
    done(capsys, "store", "import", stores[1], tmp_path / "first.xyz")
    before = entries(stores[1])
    again = initial_labels.first_labels(loaded, populations(loaded), stores[1])
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
    task = Task(molecule("H2O").numbers, molecule("H2O").positions, *OPEN, 2, 2)
    filled(path, (task, failed(task, "no luck")))
    me = ("--method", ME[0], "--version", ME[1])
    out = done(capsys, "store", "import", path, tmp_path / "data.traj", *me, "--charge", "2", "--spin", "2")
    assert out == f"{path}: 2 new labels, 1 in place of failed ones, 1 known before\n"
    rows = entries(path)
    assert [(e.row, e.task.charge, e.task.spin, e.status) for e in rows] == [
        (1, 2, 2, "done"),
        (2, -1, 1, "done"),
        (3, 2, 2, "done"),
    ]
    assert rows[0].result.energy == -1.5 and rows[0].result.reason == ""
    np.testing.assert_array_equal(rows[2].result.stress, [[0, 5, 4], [5, 1, 3], [4, 3, 2]])


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"energy": None}, "carries no energy; give `energy` or `REF_energy`"),
        ({"forces": None}, "carries no forces"),
        ({"energy": float("nan")}, "energy: not a finite number"),
        ({"forces": np.full((3, 3), np.nan)}, "forces: not a finite number"),
        ({"stress": np.full(6, np.inf)}, "stress: not a finite number"),
        ({"charge": 0.5}, "charge '0.5' is not a whole number"),
        ({"spin": "up"}, "spin 'up' is not a whole number"),
        ({"spin": -1}, "spin -1 cannot be; give a number of unpaired electrons"),
        ({"pbc": [True, True, False]}, "periodic along a, b, but these lattice vectors span nothing"),
        ({"pbc": True}, "periodic, but its cell has no volume"),
        ({"positions": np.full((3, 3), np.nan)}, "a position is not a finite number"),
    ],
)
def test_import_names_the_frame_and_writes_nothing(tmp_path, capsys, path, change, expected):
    bad = labeled(molecule("H2O"), **{k: v for k, v in change.items() if k in ("energy", "forces", "stress")})
    bad.info |= {name: change[name] for name in ("charge", "spin") if name in change}
    bad.pbc = change.get("pbc", "stress" in change)
    bad.cell = np.eye(3) * 9 * ("stress" in change)
    bad.positions = change.get("positions", bad.positions)
    bad.calc.atoms = bad.copy()  # ASE forgets the results of atoms that have changed
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
    assert "frame 0 (line 1): begins with 'not a structure'" in refused(
        capsys, "store", "import", mixed, tmp_path / "notes.xyz"
    )
    foreign = filled(tmp_path / "store.db", (water(), good(1.0)))  # SQLite, but not ASE's
    before = foreign.read_bytes()
    assert "ASE cannot read it" in refused(capsys, "store", "import", mixed, foreign)
    assert foreign.read_bytes() == before and len(entries(mixed)) == 4


def test_copies_that_differ_in_masses_are_told(tmp_path, capsys, path):
    light, heavy = labeled(molecule("H2O")), labeled(molecule("H2O"))
    heavy.set_masses([15.999, 2.014, 2.014])
    write(tmp_path / "data.traj", [light, light, heavy])
    out = done(capsys, "store", "import", path, tmp_path / "data.traj", "--method", "m", "--version", "1")
    assert "1 new labels, 0 in place of failed ones, 2 known before, 1 of them with other masses, fixed atoms" in out
    assert conversion.frame_of(entries(path)[0]).mass.tolist() == light.get_masses().tolist()


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


@pytest.mark.parametrize("name", ["out.xyz", "out.db"])
def test_electrons_that_nobody_says_stay_unknown(tmp_path, capsys, path, name):
    radical = molecule("CH3")
    radical.set_initial_magnetic_moments(None)
    write(tmp_path / "data.xyz", [labeled(radical), labeled(molecule("CH4"))])
    me = ("--method", ME[0], "--version", ME[1])
    assert main(["store", "import", str(path), str(tmp_path / "data.xyz"), *me]) == 0
    assert "1 frames, the first is 0, have an odd number of electrons and say no spin" in capsys.readouterr().err
    done(capsys, "store", "export", path, tmp_path / name)
    assert main(["store", "import", str(tmp_path / "again.sqlite"), str(tmp_path / name)]) == 0
    assert "odd number" not in capsys.readouterr().err, "the file says that they are unknown"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", InputWarning)
        frames = dataset.labeled(tmp_path / name, "data").frames
    assert [row.key for row in entries(path)] == [row.key for row in entries(tmp_path / "again.sqlite")]
    assert [dataset.state_of(frame) for frame in frames] == [(0, 0), (0, 0)]
    carried = [dict(frame.carried.info).get("electrons") for frame in files.read(tmp_path / name)]
    assert carried == ["unknown", None]


def test_frames_of_another_method_than_the_commands_are_told(tmp_path, capsys, path):
    atoms = labeled(molecule("H2O"))
    atoms.info["method"] = "GFN1"
    write(tmp_path / "data.xyz", atoms)
    assert main(["store", "import", str(path), str(tmp_path / "data.xyz"), "--method", "pbe", "--version", "1"]) == 0
    assert "frames name other methods, such as 'GFN1'; they are taken for 'pbe'" in capsys.readouterr().err
    assert [row.method for row in entries(path)] == ["pbe"]
