"""Files of structures: nothing is passed over on the way in, and everything comes back to the last bit."""

import warnings

import ase.db
import numpy as np
import pytest
from ase.build import bulk, fcc111, molecule
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms
from ase.io import read as ase_read
from ase.io import write as ase_write
from store_example import done
from structures import same_frame

from jaxal.core.errors import InputError, InputWarning
from jaxal.data import files
from jaxal.data.extxyz import text_of
from jaxal.data.frames import of_atoms
from jaxal.label.store import conversion
from jaxal.label.store.database import open_store

HEAD = 'Properties=species:S:1:pos:R:3:forces:R:3 energy=-1.5 pbc="F F F"'
WATER = "O 0.0 0.0 0.12 0.0 0.0 -0.4\nH 0.0 0.76 -0.47 0.0 0.1 0.2\nH 0.0 -0.76 -0.47 0.0 -0.1 0.2\n"
FRAME = f"3\n{HEAD}\n{WATER}"


@pytest.fixture
def path(tmp_path):
    return tmp_path / "data.xyz"


def refusal(path) -> str:
    with pytest.raises(InputError) as error:
        files.read(path)
    assert str(error.value).startswith(f"{path}: ") and "\n" not in str(error.value)
    return str(error.value).removeprefix(f"{path}: ")


# ---------------------------------------------------------------- in


@pytest.mark.parametrize("blank", ["\n", "\n\n   \n"])
def test_blank_lines_between_frames_hide_nothing(path, blank):
    path.write_text(blank.join([FRAME] * 8) + "\n\n")
    frames = files.read(path)
    assert len(frames) == 8 and all(frame.numeric.energy == -1.5 for frame in frames)


def test_a_blank_line_in_a_frame_is_named(path):
    path.write_text(FRAME + f"3\n{HEAD}\n" + WATER.replace("\n", "\n\n", 1))
    assert "frame 1 (line 9): 0 values, where Properties declares 7" in refusal(path)


def test_a_byte_order_mark_and_other_line_ends(path):
    path.write_bytes(b"\xef\xbb\xbf" + (FRAME * 2).replace("\n", "\r\n").encode())
    assert len(files.read(path)) == 2


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (FRAME + FRAME.replace("O 0.0", "O 1.0D-1"), "frame 1 (line 6): ASE cannot read it"),
        (FRAME + FRAME.replace("energy=-1.5", "energy=-1.379D+02"), "frame 1: energy: '-1.379D+02' is no number"),
        (FRAME.replace("H 0.0 0.76", "D 0.0 0.76"), "frame 0 (line 4): 'D' is no element; write H, with its mass"),
        (FRAME.replace("H 0.0 0.76", "1 0.0 0.76"), "frame 0 (line 4): 1 is a number, where the symbol of an element"),
        (FRAME.replace("H 0.0 0.76", "Xx 0.0 0.76"), "frame 0 (line 4): 'Xx' is no element"),
        (FRAME.replace("0.1 0.2", "0.1 0.2 9.9"), "frame 0 (line 4): 8 values, where Properties declares 7"),
        (FRAME.replace("0.1 0.2", "0.1"), "frame 0 (line 4): 6 values, where Properties declares 7"),
        (FRAME + "4\n" + FRAME[2:], "frame 1 (line 6): says that it has 4 atoms, but 3 lines follow"),
        (FRAME + "a title\n" + FRAME, "frame 1 (line 6): begins with 'a title'"),
        ("\n\n", "holds no structure"),
        (FRAME.replace("pbc", "energy=-1.6 pbc"), "frame 0 (line 1): energy stands there twice"),
        (FRAME.replace(":pos:R:3", ""), "frame 0 (line 1): Properties needs pos:R:3"),
        (FRAME.replace(":pos:R:3", ":pos:R"), "frame 0 (line 1): Properties must be name:kind:columns"),
        (FRAME.replace("pbc", 'stress="1 2 3" pbc'), "frame 0 (line 1): ASE cannot read it"),
        (FRAME.replace("O ", "X "), "frame 0: atom 0 is a dummy atom"),
        (FRAME.replace("pos:R:3", "pos:R:99999"), "frame 0 (line 1): says that a property has 99999 columns"),
        ("1\n\nO 0.0 0.0\n", "frame 0 (line 3): 3 values; an element and three coordinates are needed"),
        ("-1\n\n", "frame 0 (line 1): says that it has -1 atoms"),
        (FRAME.replace("pbc=", "PBC="), "frame 0 (line 1): PBC: '[False, False, False]' is not read"),
        (FRAME.replace('pbc="', 'pbc="yes '), "is not read as the directions that repeat"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_named_with_its_frame(path, text, words):
    path.write_text(text)
    assert words in refusal(path)


@pytest.mark.parametrize("name", ["stress", "virial", "REF_stress"])
def test_six_and_nine_numbers_are_the_same_tensor(path, name):
    nine = np.array([[1.0, 0.6, 0.5], [0.6, 2.0, 0.4], [0.5, 0.4, 3.0]]) * 1e-3
    six = [*np.diag(nine), nine[1, 2], nine[0, 2], nine[0, 1]]
    cell = 'Lattice="9 0 0 0 9 0 0 0 9" pbc="T T T"'
    head = HEAD.replace('pbc="F F F"', cell)
    if name.startswith("REF_"):
        head = head.replace("forces", "REF_forces").replace("energy", "REF_energy")
    frames = [f'3\n{head} {name}="{" ".join(map(str, np.ravel(values)))}"\n{WATER}' for values in (six, nine)]
    path.write_text("".join(frames))
    first, second = (frame.numeric.stress for frame in files.read(path))
    np.testing.assert_allclose(first, second, atol=1e-18)
    np.testing.assert_allclose(first, nine if "stress" in name else -nine / 729, atol=1e-18)


def test_types_of_a_dump_are_no_elements(tmp_path):
    path = tmp_path / "dump.lammpstrj"
    box = "ITEM: TIMESTEP\n0\nITEM: NUMBER OF ATOMS\n2\nITEM: BOX BOUNDS pp pp pp\n0 9\n0 9\n0 9\n"
    path.write_text(f"{box}ITEM: ATOMS id type x y z\n1 1 0 0 0\n2 2 0 0 1\n")
    assert "types, not elements; dump them with a column `element`" in refusal(path)
    path.write_text(f"{box}ITEM: ATOMS id element x y z\n1 O 0 0 0\n2 H 0 0 1\n")
    assert files.read(path)[0].numbers.tolist() == [8, 1]


def test_partial_occupancies_of_a_crystallographic_file_are_refused(tmp_path):
    path = tmp_path / "alloy.cif"
    ase_write(path, bulk("Cu", cubic=True))
    assert len(files.read(path)[0].numbers) == 4
    path.write_text(path.read_text().replace("1.0000\n", "0.5000\n", 1).replace(" 1.0\n", " 0.5\n", 1))
    assert "occupancies Cu 0.5" in refusal(path)


def test_selective_dynamics_are_fixed_atoms(tmp_path):
    atoms = fcc111("Cu", (2, 1, 3), vacuum=5.0, periodic=True)
    atoms.set_constraint(FixAtoms([0, 1]))
    ase_write(tmp_path / "POSCAR", atoms, format="vasp")
    assert np.flatnonzero(files.read(tmp_path / "POSCAR")[0].fixed).tolist() == [0, 1]
    text = (tmp_path / "POSCAR").read_text()
    (tmp_path / "POSCAR").write_text(text.replace("F   F   F", "F   F   T", 1))
    assert "atom 0 is fixed in some directions" in refusal(tmp_path / "POSCAR")


# ---------------------------------------------------------------- and out


def everything():
    """A slab with whatever a frame can carry, and a free cation in an open box; all digits count."""
    rng = np.random.default_rng(0)
    slab = fcc111("Cu", (2, 2, 3), vacuum=6.0, periodic=True)
    slab.positions += rng.normal(size=slab.positions.shape) * 0.1
    slab.set_constraint(FixAtoms([0, 1, 2, 3]))
    slab.set_masses(np.where(np.arange(12) == 5, 65.0, 63.546))
    slab.set_initial_magnetic_moments(rng.normal(size=12))
    slab.arrays["mine"] = rng.normal(size=(12, 2))
    slab.arrays["label"] = np.array(["a", "bb", "c"] * 4)
    slab.arrays["marked"] = np.arange(12) % 2 == 0
    slab.info |= {"config_type": "slab 1", "config_weight": 0.3, "id": 7, "list": [1, "x"], "vector": np.arange(3.0)}
    stress = rng.normal(size=6) * 1e-3
    forces = rng.normal(size=(12, 3))
    slab.calc = SinglePointCalculator(slab, energy=rng.normal() * 1e4, forces=forces, stress=stress)
    water = molecule("H2O")
    water.positions += rng.normal(size=(3, 3)) * 1e-3
    water.cell = [9.0, 8.0, 7.0]
    water.info |= {"charge": 1, "spin": 1, "method": "1.10", "version": "T", "comment": 'say "hi" \\ there'}
    water.calc = SinglePointCalculator(water, energy=-1 / 3, forces=rng.normal(size=(3, 3)))
    return [files.portable(of_atoms(atoms)) for atoms in (slab, water)]


@pytest.mark.parametrize("name", ["out.xyz", "out.extxyz.gz", "out.db"])
def test_a_frame_comes_back_from_every_kind_of_file(tmp_path, name):
    frames = everything()
    assert files.write(tmp_path / name, frames) == 2
    for before, after in zip(frames, files.read(tmp_path / name), strict=True):
        same_frame(before, after)
        assert after.origin == before.origin


def test_from_file_to_store_to_file_to_database_to_store(tmp_path, capsys):
    """Same keys, numbers, electrons, constraints, masses, weights and whatever else, bit for bit."""
    first, text, base = (tmp_path / name for name in ("first.sqlite", "a.xyz", "b.db"))
    me = ("--method", "m", "--version", "1")
    files.write(tmp_path / "in.xyz", everything())
    done(capsys, "store", "import", first, tmp_path / "in.xyz", *me)
    done(capsys, "store", "export", first, text)
    done(capsys, "store", "import", tmp_path / "second.sqlite", text)
    done(capsys, "store", "export", tmp_path / "second.sqlite", base)
    done(capsys, "store", "import", tmp_path / "third.sqlite", base)
    done(capsys, "store", "merge", tmp_path / "fourth.sqlite", tmp_path / "third.sqlite")
    stores = [[*_entries(tmp_path / f"{name}.sqlite")] for name in ("first", "second", "third", "fourth")]
    for original, *entries in zip(everything(), *stores, strict=True):
        assert len({entry.key for entry in entries}) == 1
        for entry in entries:
            came = conversion.frame_of(entry)
            same_frame(original._replace(charge=original.charge or 0, spin=original.spin or 0), came)


def _entries(path):
    store = open_store(path)
    yield from store.all()
    store.close()


def test_what_no_file_can_hold_is_told(path):
    atoms = molecule("H2O")
    atoms.info |= {"object": object(), "fine": np.float64(1.5)}
    with pytest.warns(InputWarning, match="left out: object$"):
        files.write(path, [of_atoms(atoms)])
    assert dict(files.read(path)[0].carried.info) == {"fine": 1.5}
    with warnings.catch_warnings():
        warnings.simplefilter("error", InputWarning)
        files.write(path, [of_atoms(molecule("H2O"))], force=True)


def test_what_is_written_is_what_ase_reads(tmp_path):
    frames = everything()
    files.write(tmp_path / "a.xyz", frames)
    files.write(tmp_path / "a.db", frames)
    rows = [row.toatoms() for row in ase.db.connect(tmp_path / "a.db").select()]
    for atoms in ([*ase_read(tmp_path / "a.xyz", ":")], rows):
        np.testing.assert_array_equal(atoms[0].positions, frames[0].position)
        np.testing.assert_array_equal(atoms[0].get_forces(apply_constraint=False), frames[0].numeric.force)
        np.testing.assert_array_equal(atoms[0].get_stress(voigt=False), frames[0].numeric.stress)
        np.testing.assert_array_equal(atoms[0].get_masses(), frames[0].mass)
        assert list(atoms[0].constraints[0].index) == [0, 1, 2, 3]
        assert atoms[1].get_potential_energy() == -1 / 3 and not atoms[1].pbc.any()


def test_what_is_no_text_is_one_line(path):
    path.write_bytes(b"\xff\xfe\x00\x81")
    assert refusal(path).startswith("cannot be read as text (UnicodeDecodeError: ")


def test_vectors_after_the_atoms_belong_to_their_frame(path):
    """As ASE reads them: lines `VEC1` to `VEC3`, beside no Lattice."""
    frame = "1\n\nCu 0 0 0\nVEC1 4 0 0\nVEC2 0 5 0\nVEC3 0 0 6\n"
    path.write_text(frame + frame.replace("Cu 0", "Cu 1"))
    read = files.read(path, labeled=False)
    assert [np.diag(frame.cell).tolist() for frame in read] == [[4.0, 5.0, 6.0]] * 2
    assert [frame.position[0, 0] for frame in read] == [0.0, 1.0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda atoms: atoms.set_array("odd name", np.arange(3)), "odd name: int64 of shape .* cannot be a column"),
        (lambda atoms: atoms.set_array("cube", np.zeros((3, 2, 2))), "cube: float64 of shape .* cannot be a column"),
        (lambda atoms: atoms.set_array("site", np.array(["a b", "c", "d"])), "site: 'a b' cannot stand in a column"),
        (lambda atoms: atoms.set_array("site", np.array(["", "c", "d"])), "site: '' cannot stand in a column"),
        (lambda atoms: atoms.info.update(thing={1, 2}), "thing"),
        (lambda atoms: atoms.info.update(occupancy={"0": {"O": "half"}}), "an occupancy is 'half', which is no number"),
    ],
)
def test_what_extended_xyz_cannot_hold_is_named(path, change, message):
    atoms = molecule("H2O")
    change(atoms)
    with pytest.raises(InputError, match=f"^({path}: frame 0: )?{message}"):
        text_of(of_atoms(atoms, labeled=False))
