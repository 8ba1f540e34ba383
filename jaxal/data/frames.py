"""The one door for data from outside: ASE's atoms become frames here, and nothing else reads what they carry.

A frame is one structure with its electrons, masses, fixed atoms, label, weights and provenance, and with whatever else
it carried, so that all of it can be written again. What a frame cannot carry is refused in one line.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import ase
import numpy as np
from ase.calculators.calculator import all_properties
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms, FixCartesian, FixScaled
from ase.data import atomic_masses, chemical_symbols, covalent_radii
from ase.neighborlist import neighbor_list

from jaxal.core.errors import InputError
from jaxal.data import electrons as charges
from jaxal.data import labels, lattice
from jaxal.data.labels import Numbers, Share

# No reference method labels more, and a committee on several walkers has no memory for them.
MOST_ATOMS = 10_000
NEAREST = 0.2  # of the sum of two atoms' covalent radii: 0.12 Å for H2, far below what any dynamics visits
STANDARD = 1e-4  # amu; a mass so near the element's own is the element's own
CONVERGED = ("converged", "scf_converged", "is_converged")  # in lower case
FALSE = ("false", "f", "0", "no", "n", ".false.")
INITIAL = ("masses", "initial_charges", "initial_magmoms")  # arrays of ASE's that must be numbers
ISOLATED = ("isolatedatom", "isolated_atom", "isolated atom")  # config_type of free atoms, in lower case
ORIGIN = ("method", "version", "key", "status", "reason", "seconds")
GEOMETRY = frozenset({"numbers", "positions", "masses"})


class Origin(NamedTuple):
    """Where a label comes from, as a label store says it; empty where nobody says it."""

    method: str = ""
    version: str = ""
    key: str = ""
    status: str = ""
    reason: str = ""
    seconds: float = 0.0  # wall time


class Carried(NamedTuple):
    """What else a frame carried: `info` of the frame, and `arrays` with a row for each atom."""

    info: tuple[tuple[str, Any], ...] = ()
    arrays: tuple[tuple[str, np.ndarray], ...] = ()


class Frame(NamedTuple):
    """One structure from outside; numpy, float64."""

    numbers: np.ndarray  # [n] atomic numbers
    position: np.ndarray  # [n 3] Å
    cell: np.ndarray  # [3 3] Å, rows are lattice vectors; those along open directions are only carried
    periodic: np.ndarray  # [3] bool, which lattice vectors repeat
    mass: np.ndarray  # [n] amu
    fixed: np.ndarray  # [n] bool, atoms that nothing moves
    charge: int | None  # e; None where nobody says it
    spin: int | None  # number of unpaired electrons; likewise
    numeric: Numbers  # as the file has them; NaN where absent
    share: Share
    isolated: bool  # a free atom, whose energy is the reference of its element
    origin: Origin
    carried: Carried
    family: str = ""  # what the names of its labels began with: `labels.family_of`

    @property
    def lattice(self) -> np.ndarray:
        """The cell [3 3] that counts: zeros for an open structure; a slab's has the vacuum vector it came with."""
        return self.cell if self.periodic.any() else np.zeros((3, 3))

    @property
    def label(self) -> Numbers:
        """The numbers that can be learned from, see `labels.known`; a stress in the directions that repeat."""
        numbers = labels.known(self.numeric, self.fixed, self.share)
        return numbers._replace(stress=lattice.along_periodic(numbers.stress, self.cell, self.periodic))


def of_atoms(atoms: ase.Atoms, labeled: bool = True) -> Frame:
    """A frame of ASE's atoms. Without `labeled` no energies, forces and stresses are looked for.

    Results of a calculator count only where they are of these very atoms. Raises InputError for what cannot be carried:
    no atoms or too many, dummy atoms, partial occupancies, constraints other than fixed atoms, positions or cells that
    are not finite, periodic lattice vectors that span nothing, electrons that cannot be.
    """
    numbers = np.array(atoms.numbers, np.int64)
    _check_atoms(atoms, numbers)
    cell, periodic = cell_of(atoms)
    info = {str(key): value for key, value in atoms.info.items()}
    # of a crystal the moment is whatever the bands made of it
    moment = None if periodic.any() else _results(atoms).get("magmom", info.get("magmom"))
    electrons = charges.electrons_of(info, atoms.arrays, moment)
    if _text(info.get(charges.SAID)) == charges.UNKNOWN and charges.unknown(numbers, periodic, *electrons):
        electrons = charges.Electrons(0, 0)
    elif electrons.spin is not None and not periodic.any():  # the bands of a crystal hold as many as they like
        charges.check_electrons(numbers, electrons.charge or 0, electrons.spin)
    share = labels.share_of(info)
    numeric = Numbers(float("nan"), np.full((len(numbers), 3), np.nan), np.full((3, 3), np.nan))
    status = _text(info.get("status"))
    if labeled and status != "failed":
        zero = np.zeros((3, 3))
        for name in (name for name in info if name.lower() in CONVERGED and str(info[name]).lower() in FALSE):
            raise InputError(f"{name} is false: its numbers mean nothing; leave the frame out")
        numeric = labels.numbers_of(info, atoms.arrays, _results(atoms), cell if periodic.any() else zero)
    isolated = _text(info.get("config_type")).strip().lower() in ISOLATED
    if isolated and len(numbers) != 1:
        raise InputError(f"config_type={info['config_type']}, but it has {len(numbers)} atoms; a free atom is one")
    return Frame(
        numbers=numbers,
        position=np.array(atoms.positions, float),
        cell=cell,
        periodic=periodic,
        mass=np.array(atoms.get_masses(), float),
        fixed=fixed_atoms(atoms),
        charge=electrons.charge,
        spin=electrons.spin,
        numeric=numeric,
        share=share,
        isolated=isolated,
        origin=_origin(info),
        carried=_carried(atoms, info, labeled),
        family=labels.family_of(info, atoms.arrays),
    )


def to_atoms(frame: Frame, labeled: bool = True) -> ase.Atoms:
    """The frame as ASE's atoms, with all that it carries; its numbers as results of a calculator."""
    atoms = ase.Atoms(
        numbers=frame.numbers,
        positions=frame.position,
        cell=frame.cell if frame.cell.any() else None,
        pbc=frame.periodic,
        info=info_of(frame),
        constraint=FixAtoms(np.flatnonzero(frame.fixed)) if frame.fixed.any() else None,
    )
    if isotopes(frame):
        atoms.set_masses(frame.mass)  # pyright: ignore[reportArgumentType]
    for name, values in frame.carried.arrays:
        atoms.set_array(name, np.array(values))
    if labeled and (results := results_of(frame)):
        atoms.calc = SinglePointCalculator(atoms, **results)
    return atoms


def bare(
    numbers: np.ndarray,
    position: np.ndarray,
    cell: np.ndarray,
    periodic: np.ndarray,
    mass: np.ndarray,
    fixed: np.ndarray,
    charge: int | None,
    spin: int | None,
    numeric: Numbers | None = None,
) -> Frame:
    """A frame of nothing but this."""
    nothing = Numbers(float("nan"), np.full((len(numbers), 3), np.nan), np.full((3, 3), np.nan))
    return Frame(
        numbers=np.asarray(numbers, np.int64),
        position=np.asarray(position, float),
        cell=np.asarray(cell, float),
        periodic=np.asarray(periodic, bool),
        mass=np.asarray(mass, float),
        fixed=np.asarray(fixed, bool),
        charge=charge,
        spin=spin,
        numeric=nothing if numeric is None else numeric,
        share=Share(),
        isolated=False,
        origin=Origin(),
        carried=Carried(),
    )


def stripped(frame: Frame) -> Frame:
    """The structure of a frame with its masses, fixed atoms and electrons, without anything else."""
    geometry = frame.numbers, frame.position, frame.lattice, frame.periodic
    return bare(*geometry, frame.mass, frame.fixed, frame.charge, frame.spin)


def results_of(frame: Frame) -> dict[str, Any]:
    """The numbers of a frame that are there, by ASE's names; a stress in six numbers."""
    energy, force, stress = frame.numeric
    results: dict[str, Any] = {}
    if not np.isnan(energy):
        results["energy"] = energy
    if not np.isnan(force).any():
        results["forces"] = force
    if not np.isnan(stress).any():
        results["stress"] = labels.matrix_to_voigt(stress)
    return results


def info_of(frame: Frame) -> dict[str, Any]:
    """What the info of ASE's atoms holds of a frame, by the names that `of_atoms` reads."""
    info: dict[str, Any] = dict(frame.carried.info)
    info |= {name: value for name, value in (("charge", frame.charge), ("spin", frame.spin)) if value is not None}
    if frame.spin is not None and charges.unknown(frame.numbers, frame.periodic, frame.charge, frame.spin):
        info[charges.SAID] = charges.UNKNOWN  # else its zeros would be read as said, which cannot be
    info |= {name: value for name, value in frame.origin._asdict().items() if value}
    stress = frame.numeric.stress
    return info | ({labels.MATRIX: stress} if not np.array_equal(stress, stress.T, equal_nan=True) else {})


def isotopes(frame: Frame) -> bool:
    """Whether an atom has another mass than its element's average."""
    return bool(np.any(np.abs(frame.mass - atomic_masses[frame.numbers]) > STANDARD))


def with_electrons(frame: Frame, charge: int | None, spin: int | None, section: str) -> Frame:
    """The frame with the charge and spin that the configuration gives in `section`, 0 where nobody says any.

    Raises InputError where frame and configuration differ, and where an open structure cannot have those electrons: of
    a spin or charge that is said. Where neither is, nothing is known of them (`electrons.unknown`).
    """
    values = {}
    for name, configured in (("charge", charge), ("spin", spin)):
        own = getattr(frame, name)
        if own is not None and configured is not None and own != configured:
            what = f"its {name} is {own}, but {section}.{name} is {configured}"
            raise InputError(f"{what}; give the same, or leave it out")
        values[name] = own if configured is None else configured
    checked = frame.spin is not None and (values["charge"] or 0) == (frame.charge or 0)  # when it was read
    if not checked and (values["spin"] is not None or values["charge"]) and not frame.periodic.any():
        try:
            charges.check_electrons(frame.numbers, values["charge"] or 0, values["spin"] or 0)
        except InputError as error:
            raise InputError(str(error) if charge is None and spin is None else f"{section}.{error}") from None
    return frame._replace(charge=values["charge"] or 0, spin=values["spin"] or 0)


def overlap(frame: Frame | ase.Atoms, closest: float) -> str:
    """Which two atoms are nearer than this part of the sum of their covalent radii, in words; empty where none are.

    Periodic images count. What a reference method says of such a frame is nonsense, if it says anything.
    """
    if isinstance(frame, Frame):
        frame = ase.Atoms(frame.numbers, frame.position, cell=frame.lattice, pbc=frame.periodic)
    part = max(closest, NEAREST)
    first, second, distance = neighbor_list("ijd", frame, part * covalent_radii[frame.numbers])
    if len(distance) == 0:
        return ""
    worst = int(np.argmin(distance))
    i, j = int(first[worst]), int(second[worst])
    names = f"atoms {i} ({chemical_symbols[frame.numbers[i]]}) and {j} ({chemical_symbols[frame.numbers[j]]})"
    return f"{names} are {distance[worst]:.3g} Å apart, less than {part:g} of the sum of their covalent radii"


def _check_atoms(atoms: ase.Atoms, numbers: np.ndarray) -> None:
    if len(numbers) == 0:
        raise InputError("no atoms; give at least one")
    if len(numbers) > MOST_ATOMS:
        raise InputError(f"{len(numbers)} atoms; give at most {MOST_ATOMS}")
    if (numbers < 1).any() or (numbers >= len(chemical_symbols)).any():
        row = int(np.flatnonzero((numbers < 1) | (numbers >= len(chemical_symbols)))[0])
        raise InputError(f"atom {row} is a dummy atom (X), which has no element; remove it or name its element")
    if not np.all(np.isfinite(atoms.positions)):
        raise InputError("a position is not a finite number")
    for name in INITIAL:
        values = atoms.arrays.get(name, np.zeros(1))
        if values.dtype.kind not in "iuf" or not np.all(np.isfinite(values)) or (name == "masses" and values.ndim > 1):
            raise InputError(f"{name}: not a finite number for each atom; mend or remove the column")
    masses = atoms.get_masses()
    if not np.all(np.isfinite(masses)) or np.any(masses <= 0):
        row = int(np.argmin(np.where(np.isfinite(masses), masses, -1.0)))
        raise InputError(f"masses: atom {row} has {masses[row]:g} amu; give more than 0")
    _check_occupancies(atoms)


def _check_occupancies(atoms: ase.Atoms) -> None:
    sites: Any = atoms.info.get("occupancy")
    what = "a site that is shared or partly empty is no structure; give a supercell with whole atoms"
    if isinstance(sites, Mapping):
        for site, kinds in sites.items():
            shares = {str(symbol): _share(part) for symbol, part in kinds.items()}
            if len(shares) > 1 or abs(sum(shares.values()) - 1) > 1e-6:
                listed = ", ".join(f"{symbol} {part:g}" for symbol, part in shares.items())
                raise InputError(f"site {site} has occupancies {listed}; {what}")
    for name in ("occupancy", "occupancies"):
        values = atoms.arrays.get(name)
        if values is None or values.dtype.kind not in "iuf" or values.ndim != 1:
            continue
        partial = np.flatnonzero((values > 1e-6) & (values < 1 - 1e-6))  # files without occupancies write zeros
        if len(partial):
            raise InputError(f"atom {partial[0]} has occupancy {values[partial[0]]:g}; {what}")


def _share(part: Any) -> float:
    try:
        return float(part)
    except (TypeError, ValueError):
        raise InputError(f"an occupancy is {str(part)[:30]!r}, which is no number") from None


def cell_of(atoms: ase.Atoms) -> tuple[np.ndarray, np.ndarray]:
    """The cell [3 3] and which of its vectors repeat [3]. Raises InputError where these span nothing."""
    cell, periodic = np.array(atoms.cell.array, float), np.array(atoms.pbc, bool)
    if not np.all(np.isfinite(cell)):
        raise InputError("a lattice vector is not a finite number")
    if lattice.spanned(cell, periodic) < lattice.FLAT:
        if periodic.all():
            raise InputError("periodic, but its cell has no volume; give Lattice=..., or pbc as it is")
        what = f"periodic along {lattice.named(periodic)}, but these lattice vectors span nothing"
        raise InputError(f"{what}; give Lattice=..., or pbc as it is")
    return cell, periodic


def fixed_atoms(atoms: ase.Atoms) -> np.ndarray:
    """Which atoms are held in place, [n]. Raises InputError that names a constraint of another kind."""
    directions = np.zeros((len(atoms), 3), bool)
    for constraint in atoms.constraints:
        if isinstance(constraint, FixAtoms):
            directions[constraint.index] = True
        elif isinstance(constraint, FixCartesian | FixScaled):
            directions[constraint.index] |= np.asarray(constraint.mask, bool)
        else:
            raise InputError(
                f"constraint {type(constraint).__name__} cannot be kept; only whole atoms can be fixed (FixAtoms)"
            )
    some = directions.any(axis=1) & ~directions.all(axis=1)
    if some.any():
        row = int(np.flatnonzero(some)[0])
        raise InputError(f"atom {row} is fixed in some directions and free in others; fix it in all of them or in none")
    return np.all(directions, axis=1)


def _results(atoms: ase.Atoms) -> Mapping[str, Any]:
    """What a calculator has said of these atoms; nothing where they have changed since."""
    calculator: Any = atoms.calc
    results = getattr(calculator, "results", None)
    if not isinstance(results, Mapping) or not results:
        return {}
    changed = getattr(calculator, "check_state", lambda atoms: [])(atoms)
    return {} if changed else results


def _origin(info: Mapping[str, Any]) -> Origin:
    seconds = info.get("seconds", 0.0)
    right = isinstance(seconds, int | float | np.number) and np.isfinite(seconds) and seconds > 0
    method, version, key, status, reason = (_text(info.get(name)) for name in ORIGIN[:-1])
    return Origin(method, version, key, status, reason, float(seconds) if right else 0.0)


def _text(value: Any) -> str:
    return "" if value is None else str(value)


def _carried(atoms: ase.Atoms, info: Mapping[str, Any], labeled: bool) -> Carried:
    """What none of the rules reads, and the weights, which keep their names.

    Where labels do not count nothing else that a calculator gives does, such as a dipole.
    """
    read = labels.KEYS | {*ORIGIN, "occupancy"} | (set() if labeled else set(all_properties))
    others = {key: value for key, value in info.items() if key not in read and key.lower() not in charges.KEYS}
    arrays = {name: values for name, values in atoms.arrays.items() if name not in GEOMETRY | read}
    results: dict[str, Any] = dict(_results(atoms))  # a dipole, charges: of the frame, though not learned from
    for name, value in results.items():
        if name in read or value is None:
            continue
        if np.ndim(value) and len(np.atleast_1d(value)) == len(atoms) and name.endswith("s"):
            arrays.setdefault(name, np.asarray(value))
        else:
            others.setdefault(name, value)
    return Carried(tuple(others.items()), tuple((name, _column(values)) for name, values in arrays.items()))


def _column(values: Any) -> np.ndarray:
    """An array of its own; texts, which ASE reads as objects, as texts."""
    array = np.array(values)
    return array.astype(str) if array.dtype == object and all(isinstance(text, str) for text in array.flat) else array
