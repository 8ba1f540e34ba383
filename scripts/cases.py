"""Inputs that have been misread, each once more: `python scripts/cases.py DIR` says which are read right.

DIR holds the small files that the cases name, with `tiny.yaml` for trainings. A case is right where the numbers that
come out are those that the file means, or where it is refused in one line that names the file or the field. Ends with
status 1 where one is wrong. `--only WORD` takes the cases whose names hold the word.
"""
# ruff: noqa: D103

import argparse
import contextlib
import copy
import io
import os
import pickle
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import ase
import ase.db
import ase.io
import numpy as np
from ase.build import molecule

CASES: dict[str, Callable[["Place"], str]] = {}
ME = ("--method", "m", "--version", "1")


class Said(NamedTuple):
    """What a command answered."""

    status: int
    out: str
    err: str

    @property
    def refused(self) -> bool:
        """In one line, without a traceback."""
        lines = [line for line in self.err.splitlines() if not line.startswith("jaxal: warning: ")]
        return self.status == 2 and len(lines) == 1 and lines[0].startswith("jaxal: error: ")


class Place(NamedTuple):
    """Where the inputs are, and an empty folder for what is made of them."""

    data: Path
    work: Path

    def jaxal(self, *words: object) -> Said:
        """One command, in this process, started in the folder of the inputs."""
        from jaxal.cli.main import main

        out, err = io.StringIO(), io.StringIO()
        with contextlib.chdir(self.data), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                status = main([str(word) for word in words])
            except SystemExit as end:
                status = int(end.code or 0)
            except BaseException:
                traceback.print_exc()
                status = 1
        return Said(status, out.getvalue(), err.getvalue())

    def python(self, code: str, *words: str, timeout: float = 300, **environment: str) -> Said:
        """Code in another Python, with the inputs on its path."""
        path = os.pathsep.join([str(self.data), *sys.path])
        process = subprocess.run(
            [sys.executable, *(["-c", code] if code else []), *words],
            cwd=self.data,
            env={**os.environ, "PYTHONPATH": path, **environment},
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout,
        )
        return Said(process.returncode, process.stdout, process.stderr)

    def train(self, file: str, *more: str) -> Said:
        """A small training of a file, into `work/model`."""
        return self.jaxal("train", "tiny.yaml", f"data.file={file}", *more, "--dir", self.work / "model")

    def trained(self) -> list[ase.Atoms]:
        """What was trained on."""
        return ase.io.read(self.work / "model" / "training.xyz", ":")  # pyright: ignore[reportReturnType]

    def raw(self, file: str) -> list[ase.Atoms]:
        """A file as ASE reads it."""
        return ase.io.read(self.data / file, ":")  # pyright: ignore[reportReturnType]


def case(function: Callable[[Place], str]) -> Callable[[Place], str]:
    """Enters a case: it returns what is wrong, or nothing."""
    CASES[function.__name__] = function
    return function


def refused(said: Said, *words: str) -> str:
    """What is wrong with a refusal; empty where it is one line with these words."""
    if not said.refused:
        return f"not refused in one line (status {said.status}): {said.err[-300:] or said.out[-300:]}"
    missing = [word for word in words if word not in said.err]
    return f"{missing} not in {said.err}" if missing else ""


def done(said: Said) -> str:
    """What is wrong with a command that should succeed."""
    return "" if said.status == 0 else f"status {said.status}: {said.err[-300:]}"


@case
def reference_keys_win(place: Place) -> str:
    if wrong := done(place.train("ref_and_other.xyz")):
        return wrong
    ours = sorted(atoms.get_potential_energy() for atoms in place.trained())
    theirs = sorted(atoms.info["REF_energy"] for atoms in place.raw("ref_and_other.xyz"))
    return "" if np.allclose(ours, theirs, atol=1e-3) else f"{ours} are not {theirs}"


@case
def cations(place: Place) -> str:
    import jaxal

    if wrong := done(place.train("cations.xyz")):
        return wrong
    model = jaxal.load_model(place.work / "model")
    atoms = place.raw("cations.xyz")[0]
    atoms.calc = jaxal.Calculator(place.work / "model")
    atoms.get_potential_energy()
    return "" if model.states == ((1, 1),) else f"charges and spins {model.states}"


@case
def cations_validated(place: Place) -> str:
    said = place.train("water.xyz", "data.validation=cations.xyz")
    late = (place.work / "model" / "metrics.jsonl").exists()
    return refused(said, "cations.xyz") or ("after the training" if late else "")


@case
def cations_validated_by_themselves(place: Place) -> str:
    said = place.train("cations.xyz", "data.validation=cations.xyz")
    return "" if said.status == 0 else refused(said, "cations.xyz")


@case
def mixed_charges(place: Place) -> str:
    import jaxal

    if wrong := done(place.train("mixed_charges.xyz")):
        return wrong
    known = jaxal.load_model(place.work / "model").states
    return "" if len(known) > 1 else f"one surface for all: {known}"


@case
def virial(place: Place) -> str:
    store, file = place.work / "s.sqlite", place.work / "out.xyz"
    wrong = done(place.jaxal("store", "import", store, "virial.xyz", *ME))
    wrong = wrong or done(place.jaxal("store", "export", store, file)) or done(place.train("virial.xyz"))
    if wrong:
        return wrong
    meant = [-atoms.info["virial"] / atoms.get_volume() for atoms in place.raw("virial.xyz")]
    exported = [atoms.get_stress(voigt=False) for atoms in ase.io.read(file, ":")]  # pyright: ignore
    learned = [atoms.get_stress(voigt=False) for atoms in place.trained()]
    right = np.allclose(meant, exported, atol=1e-12) and np.allclose(meant, learned, atol=1e-6)
    return "" if right else "stress is not -virial/volume"


@case
def absent_stress(place: Place) -> str:
    store, file = place.work / "s.sqlite", place.work / "out.xyz"
    atoms = place.raw("virial.xyz")
    for frame in atoms:
        del frame.info["virial"]
    ase.io.write(place.work / "no.xyz", atoms)
    wrong = done(place.jaxal("store", "import", store, place.work / "no.xyz", *ME))
    wrong = wrong or done(place.jaxal("store", "export", store, file))
    return wrong or ("a stress came from nowhere" if "stress" in file.read_text() else "")


@case
def pressure_without_stress(place: Place) -> str:
    for words in (
        ("check", "npt0.yaml"),
        ("label", "npt0.yaml", "--check"),
        ("run", "npt0.yaml", "--dir", place.work / "r"),
    ):
        if wrong := refused(place.jaxal(*words), "stress"):
            return f"{words[0]}: {wrong}"
    said = place.jaxal("check", "npt0.yaml", "label.stress=true", "train.stress_weight=0")
    return done(said) or ("" if "stress_weight" in said.err else "not warned of stress_weight: 0")


@case
def dianion(place: Place) -> str:
    said = place.jaxal("label", "label.yaml", "--check")
    if said.refused:
        return ""
    energy = float(said.out.split("energy")[1].split()[0])
    return "" if abs(energy + 219.40) < 0.01 else f"{energy} eV"


@case
def dianion_against_the_configuration(place: Place) -> str:
    return refused(place.jaxal("label", "label.yaml", "system.charge=0", "--check"), "o2_dianion.xyz", "charge")


@case
def fixed_atoms_stay(place: Place) -> str:
    if wrong := done(place.jaxal("run", "slab.yaml", "--dir", place.work / "run")):
        return wrong
    start = place.raw("slab_fixatoms.xyz")[0]
    fixed = [int(i) for i in start.constraints[0].index]
    for file in ("trajectory.xyz", "training.xyz"):
        for atoms in ase.io.read(place.work / "run" / file, ":"):
            moved = np.abs(atoms.positions[fixed] - start.positions[fixed]).max()  # pyright: ignore
            if moved > 1e-5 or not atoms.constraints or abs(atoms.get_masses()[0] - 40) > 1e-6:  # pyright: ignore
                return f"{file}: moved by {moved:.3g} Å, constraints {atoms.constraints}, mass {atoms.get_masses()[0]}"  # pyright: ignore
    return ""


@case
def deuterium(place: Place) -> str:
    config = place.work / "d2o.yaml"
    text = (place.data / "h2.yaml").read_text().replace("h2.xyz", str(place.data / "d2o.xyz")).replace("4 fs", "1 fs")
    config.write_text(text)
    if wrong := done(place.jaxal("run", config, "--dir", place.work / "run")):
        return wrong
    masses = ase.io.read(place.work / "run" / "trajectory.xyz", -1).get_masses()  # pyright: ignore
    return "" if np.allclose(masses, [15.999, 2.014, 2.014]) else f"masses {masses}"


@case
def not_a_number(place: Place) -> str:
    return refused(place.train("nan_forces.xyz"), "nan_forces.xyz: frame 5", "forces")


@case
def blank_lines(place: Place) -> str:
    said = place.train("blank_lines.xyz")
    if said.refused:
        return "" if "line" in said.err else said.err
    return done(said) or ("" if len(place.trained()) == 8 else f"{len(place.trained())} frames")


@case
def free_energy(place: Place) -> str:
    sys.path.insert(0, str(place.data))
    label, store = place.work / "label.xyz", place.work / "s.sqlite"
    wrong = done(place.jaxal("label", "fe.yaml", "--data", "fe.xyz", "--out", label))
    wrong = wrong or done(place.jaxal("store", "import", store, "fe.xyz", *ME))
    wrong = wrong or done(place.jaxal("store", "export", store, place.work / "out.xyz"))
    if wrong:
        return wrong
    energies = [ase.io.read(file, 0).get_potential_energy() for file in (label, place.work / "out.xyz")]  # pyright: ignore
    return "" if np.allclose(energies, 0.6581396, atol=1e-6) else f"{energies}"


@case
def unknown_element(place: Place) -> str:
    return refused(place.train("water.xyz", "data.validation=ch4.xyz"), "ch4.xyz", "C")


def calculator(place: Place) -> Any:
    import jaxal

    if wrong := done(place.train("water.xyz")):
        raise AssertionError(wrong)
    return jaxal.Calculator(place.work / "model")


@case
def refused_and_asked_again(place: Place) -> str:
    calc, methane, water = calculator(place), molecule("CH4"), molecule("H2O")
    water.calc = methane.calc = calc
    water.get_potential_energy()
    for _ in range(2):
        with contextlib.suppress(ValueError):
            calc.calculate(methane)
        try:
            return f"methane has {methane.get_potential_energy()} eV"
        except ValueError:
            pass
    return ""


@case
def another_charge_from_the_cache(place: Place) -> str:
    calc, neutral = calculator(place), molecule("H2O")
    neutral.calc = calc
    neutral.get_potential_energy()
    cation = neutral.copy()
    cation.info |= {"charge": 1, "spin": 1}
    cation.calc = calc
    try:
        return f"the cation has {cation.get_potential_energy()} eV"
    except ValueError:
        return ""


@case
def copies_and_pickles(place: Place) -> str:
    atoms = molecule("H2O")
    atoms.calc = calculator(place)
    energy = atoms.get_potential_energy()
    again = pickle.loads(pickle.dumps(atoms.calc))
    other = molecule("H2O")
    other.calc = again
    same = copy.deepcopy(atoms).get_potential_energy() == energy == other.get_potential_energy()
    return "" if same else "another energy"


@case
def forks(place: Place) -> str:
    calculator(place)
    code = (place.data / "fork.py").read_text().replace("'t0'", repr(str(place.work / "model")))
    (place.work / "fork.py").write_text(code)
    for how in ("spawn", "fork-used-global"):
        said = place.python("", str(place.work / "fork.py"), how, timeout=200)
        if "HANGS" in said.out or (how == "spawn" and said.status):
            return f"{how}: {said.out} {said.err[-300:]}"
    return "" if "fork" in said.err and "spawn" in said.err else f"no clear error: {said.out} {said.err[-300:]}"


@case
def partial_occupancies(place: Place) -> str:
    return refused(place.jaxal("check", "npt0.yaml", "label.stress=true", "system.file=dis.cif"), "dis.cif", "occupanc")


@case
def dummy_atoms(place: Place) -> str:
    return refused(place.train("dummy_atoms.xyz"), "dummy_atoms.xyz: frame 0", "dummy")


@case
def numbers_that_are_none(place: Place) -> str:
    calculator(place)
    for file, word in (("d_exponent", "energy"), ("energy_na", "energy"), ("ref_stress_three", "REF_stress")):
        said = place.jaxal("validate", place.work / "model", "--data", f"{file}.xyz")
        here = Place(place.data, place.work / file)
        if wrong := refused(said, f"{file}.xyz: frame", word) or refused(here.train(f"{file}.xyz"), "frame", word):
            return wrong
    return ""


@case
def six_stresses(place: Place) -> str:
    if wrong := done(place.train("stress_six.xyz")):
        return wrong
    right = np.allclose(place.trained()[0].get_stress(), [0.001, 0.002, 0.003, 0.004, 0.005, 0.006], atol=1e-9)
    return "" if right else f"{place.trained()[0].get_stress()}"


@case
def multiplicity_for_spin(place: Place) -> str:
    file = "spin_is_multiplicity.xyz"
    said = place.jaxal("store", "import", place.work / "s.sqlite", file, *ME)
    return refused(said, f"{file}: frame 0", "spin") or refused(place.train(file), f"{file}: frame 0", "spin")


@case
def masked_forces(place: Place) -> str:
    from jaxal.data import files
    from jaxal.data.structure import labels_of

    said = place.train("masked_forces.xyz")
    label, fixed = labels_of(files.read(place.data / "masked_forces.xyz")), slice(0, 4)
    if not (np.isnan(label.force[:, fixed]).all() and np.isfinite(label.force[:, 4:]).all()):
        return "hidden forces count"
    free = place.raw("masked_forces.xyz")
    for atoms in free:
        atoms.set_constraint()
    ase.io.write(place.work / "free.xyz", free)
    outcome = Place(place.data, place.work / "free").train(str(place.work / "free.xyz"))
    return done(said) or ("" if "sum to zero" in outcome.err else f"the net force is not told: {outcome.err[-300:]}")


@case
def stress_in_kilobar(place: Place) -> str:
    said = place.train("stress_kbar.xyz")
    return "" if said.refused or "not plausible" in said.err else f"nothing said: {said.err}"


@case
def weight_of_zero(place: Place) -> str:
    import jaxal

    if wrong := done(place.train("weight_zero.xyz")):
        return wrong
    reference = jaxal.load_model(place.work / "model").reference
    other = done(Place(place.data, place.work / "water").train("water.xyz"))
    meant = jaxal.load_model(place.work / "water" / "model").reference
    return other or ("" if np.allclose(reference, meant, atol=0.5) else f"references {reference}, without it {meant}")


@case
def isolated_atoms(place: Place) -> str:
    import jaxal

    frames, energies = place.raw("water.xyz"), {1: -10.7, 8: -102.5}
    for number, energy in energies.items():
        atom = ase.Atoms([number])
        atom.info |= {"config_type": "IsolatedAtom", "REF_energy": energy}
        frames.append(atom)
    for frame in frames[:-2]:
        frame.info["REF_energy"], frame.arrays["REF_forces"] = frame.get_potential_energy(), frame.get_forces()
        frame.calc = None
    ase.io.write(place.work / "with.xyz", frames)
    wrong = done(place.train(str(place.work / "with.xyz")))
    if wrong:
        return wrong
    apart = ase.Atoms("OHH", positions=30.0 * np.eye(3), calculator=jaxal.Calculator(place.work / "model"))
    energy = apart.get_potential_energy()
    return "" if np.isclose(energy, -102.5 - 2 * 10.7, atol=1e-4) else f"free atoms have {energy:.4f} eV"


@case
def duplicates(place: Place) -> str:
    ase.io.write(place.work / "eight.xyz", [atoms for atoms in place.raw("water.xyz") for _ in range(8)])
    said = place.train(str(place.work / "eight.xyz"), "train.holdout=0.25")
    sides: dict[bytes, set[bool]] = {}
    for atoms in place.trained():
        sides.setdefault(np.round(atoms.positions, 4).tobytes(), set()).add(bool(atoms.info["held_out"]))
    split = [side for side in sides.values() if len(side) > 1]
    return done(said) or ("copies on both sides" if split else "") or ("" if "different" in said.err else "not told")


@case
def several_methods(place: Place) -> str:
    store = place.work / "s.sqlite"
    for method in ("GFN1-xTB", "GFN2-xTB"):
        words = f"label.method={method}", "--data", "water.xyz", "--out", place.work / f"{method}.xyz", "--store", store
        if wrong := done(place.jaxal("label", "label.yaml", "system.file=water.xyz", *words)):
            return wrong
    both = place.work / "both.xyz"
    if wrong := done(place.jaxal("store", "export", store, both)):
        return wrong
    method = ase.io.read(both, 0).info["method"]  # pyright: ignore
    reason = done(place.jaxal("store", "export", store, place.work / "one.xyz", "--method", method))
    return reason or refused(place.train(str(both)), "method") or done(place.train(str(place.work / "one.xyz")))


@case
def through_a_database(place: Place) -> str:
    store, database, out = place.work / "s.sqlite", place.work / "x.db", place.work / "out.xyz"
    atoms = place.raw("cations.xyz")[0]
    atoms.set_constraint(ase.constraints.FixAtoms([1]))  # pyright: ignore[reportAttributeAccessIssue]
    ase.io.write(place.work / "one.xyz", atoms, columns=["symbols", "positions", "forces", "move_mask"])
    wrong = done(place.jaxal("store", "import", store, place.work / "one.xyz", *ME))
    wrong = wrong or done(place.jaxal("store", "export", store, database))
    words = "--data", database, "--out", out, "--store", place.work / "t.sqlite"
    wrong = wrong or done(place.jaxal("label", "label.yaml", "system.file=water.xyz", *words))
    if wrong:
        return wrong
    labeled: Any = ase.io.read(out, 0)
    electrons = labeled.info["charge"], labeled.info["spin"]
    kept = [int(i) for constraint in labeled.constraints for i in constraint.index]
    return "" if electrons == (1, 1) and kept == [1] else f"charge and spin {electrons}, fixed atoms {kept}"


@case
def what_a_frame_carries(place: Place) -> str:
    atoms = place.raw("water.xyz")[0]
    atoms.calc = None
    atoms.info |= {"config_type": "liquid", "energy_weight": 2.0, "id": 7}
    atoms.set_tags([3, 2, 1])
    atoms.set_cell([9.0, 9.0, 9.0])
    ase.io.write(place.work / "in.xyz", atoms)
    for out in ("out.xyz", "out.db"):
        words = "--data", place.work / "in.xyz", "--out", place.work / out, "--store", place.work / "s.sqlite"
        if wrong := done(place.jaxal("label", "label.yaml", "system.file=water.xyz", *words)):
            return wrong
    back: Any = ase.io.read(place.work / "out.xyz", 0)
    row: Any = next(ase.db.connect(place.work / "out.db").select())
    for info, tags, cell in ((back.info, back.get_tags(), back.cell), (row.data, row.tags, row.cell)):
        same = all(info.get(name) == atoms.info[name] for name in ("config_type", "energy_weight", "id"))
        if not same or list(tags) != [3, 2, 1] or abs(np.diag(cell).sum() - 27) > 1e-9:
            return f"{dict(info)}, tags {tags}, cell {cell}"
    return ""


@case
def a_time_step_too_long(place: Place) -> str:
    said = place.jaxal("check", "h2.yaml")
    if "timestep" not in said.err:
        return f"check does not warn: {said.err}"
    said = place.jaxal("run", "h2.yaml", "--dir", place.work / "run")
    last = said.err.rstrip().rpartition("\n")[2]  # after those of the progress
    if said.status != 0 and not (said.status == 2 and last.startswith("jaxal: error: ")):
        return f"status {said.status}: {said.err[-300:]}"
    for file in ("training.xyz", "trajectory.xyz"):
        path = place.work / "run" / file
        for atoms in ase.io.read(path, ":") if path.exists() and path.stat().st_size else []:
            if file == "training.xyz" and atoms.get_distance(0, 1) > 10:  # pyright: ignore
                return f"a label at {atoms.get_distance(0, 1):.1f} Å"  # pyright: ignore
    return ""


@case
def byte_order_mark(place: Place) -> str:
    said = place.train("bom.xyz")
    return "" if said.refused else done(said)


@case
def isotopes_and_types(place: Place) -> str:
    water = (place.data / "water.xyz").read_text()
    (place.work / "d.xyz").write_text(water.replace("\nH ", "\nD "))
    (place.work / "types.xyz").write_text(water.replace("\nH ", "\n1 ").replace("\nO ", "\n2 "))
    dump = "ITEM: TIMESTEP\n0\nITEM: NUMBER OF ATOMS\n2\nITEM: BOX BOUNDS pp pp pp\n0 9\n0 9\n0 9\n"
    (place.work / "x.lammpstrj").write_text(dump + "ITEM: ATOMS id type x y z\n1 1 0 0 0\n2 2 0 0 1\n")
    for file, word in (("d.xyz", "H, with its mass"), ("types.xyz", "types"), ("x.lammpstrj", "element")):
        said = place.jaxal("check", "label.yaml", f"system.file={place.work / file}")
        if wrong := refused(said, word):
            return wrong
    return ""


@case
def no_such_device(place: Place) -> str:
    words = "-m", "jaxal", "train", "tiny.yaml", "--dir", str(place.work / "x")
    said = place.python("", *words, JAX_PLATFORMS="cuda")
    return refused(said, "cuda")


@case
def plain_terminals(place: Place) -> str:
    calculator(place)
    words: tuple[tuple[str, ...], ...] = (
        ("list",),
        ("check", "h2.yaml"),
        ("--help",),
        ("label", "label.yaml", "--check"),
        ("validate", str(place.work / "model"), "--data", "water.xyz"),
        ("status", str(place.work / "model")),
    )
    for command in words:
        said = place.python("", "-m", "jaxal", *command, PYTHONIOENCODING="ascii", LC_ALL="C")
        if "Traceback" in said.err or (said.status and not said.refused):
            return f"{command[0]}: {said.err[-300:]}"
    return ""


@contextlib.contextmanager
def folder() -> Iterator[Path]:
    """An empty folder that goes in the end."""
    with tempfile.TemporaryDirectory(prefix="jaxal-cases-") as path:
        yield Path(path)


def main() -> int:
    """Runs the cases and prints a line for each."""
    words = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    words.add_argument("data", type=Path, metavar="DIR")
    words.add_argument("--only", default="", metavar="WORD")
    arguments = words.parse_args()
    wrong, chosen = 0, {name: function for name, function in CASES.items() if arguments.only in name}
    for name, function in chosen.items():
        began = time.monotonic()
        with folder() as work:
            try:
                reason = function(Place(arguments.data.resolve(), work))
            except Exception as error:
                reason = f"{type(error).__name__}: {error}"
        wrong += bool(reason)
        verdict = f"WRONG: {' '.join(reason.split())}" if reason else "right"
        print(f"{name:<34} {time.monotonic() - began:5.1f} s  {verdict}", flush=True)
    print(f"{len(chosen)} cases, {wrong} wrong")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
