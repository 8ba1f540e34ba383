"""Labels that a frame carries: which of its keys are the reference, in which units, and what is absent.

A file may hold the numbers of several methods. Those named `REF_...` are the reference, else the plain ones; energy,
forces and stress always come from the same family. What is absent is NaN, never zero.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from jaxal.core.errors import InputError

REFERENCE = "REF_"
MATRIX = "stress_matrix"  # nine numbers of a stress that is symmetric but for rounding: ASE's stress has six
ENERGIES, FORCES, STRESSES, VIRIALS = ("free_energy", "energy"), ("forces",), ("stress",), ("virial", "virials")
PLAIN = (*ENERGIES, *FORCES, *STRESSES, *VIRIALS)
KEYS = frozenset([MATRIX, *PLAIN, *(REFERENCE + name for name in PLAIN)])
AGREE = 1e-3  # of the largest number: a stress and a virial of one family may differ by so much
BEYOND = 1e12  # eV, eV/Å, eV/Å^3: no number of a structure is larger
ROUNDED = 1e-9  # of the largest number: so near to a stress is the same one with all its digits
SYMMETRIC = 1e-2  # of the largest number: so far from symmetric a stress may be
SHARES = {  # of energy, forces and stress in the loss; a name in several rows counts in all
    "energy": ("config_weight", "energy_weight", "config_energy_weight"),
    "force": ("config_weight", "forces_weight", "force_weight", "config_forces_weight", "config_force_weight"),
    "stress": (
        *("config_weight", "stress_weight", "virial_weight", "virials_weight"),
        *("config_stress_weight", "config_virial_weight", "config_virials_weight"),
    ),
}
SHARE_KEYS = frozenset(name for names in SHARES.values() for name in names)


class Numbers(NamedTuple):
    """Energy, forces and stress of one structure, float64; NaN where absent."""

    energy: float  # eV
    force: np.ndarray  # [n 3] eV/Å
    stress: np.ndarray  # [3 3] eV/Å^3, ASE's sign (positive under tension)


class Share(NamedTuple):
    """What a structure counts in the loss."""

    energy: float = 1.0
    force: float = 1.0
    stress: float = 1.0


def numbers_of(info: Mapping[str, Any], arrays: Mapping[str, Any], results: Mapping[str, Any], cell: Any) -> Numbers:
    """The reference numbers of a frame of atoms with `info`, `arrays` and the `results` of a calculator.

    `cell` [3 3] in Å; where it has no volume there is no stress. The energy is the one whose gradient the
    forces are: `free_energy` where there is one. A virial in eV is minus the stress times the volume. Raises InputError
    for what is no number or does not fit, and where the families of keys hold different quantities.
    """
    atoms = len(arrays["positions"])
    sides = {"": {**info, **arrays, **results}, REFERENCE: {**info, **arrays}}
    families = {
        prefix: {name: values[prefix + name] for name in PLAIN if values.get(prefix + name) is not None}
        for prefix, values in sides.items()
    }
    volume = float(abs(np.linalg.det(np.asarray(cell, float))))
    quantities = {prefix: _quantities(values, volume > 0) for prefix, values in families.items()}
    prefix = family_of(info, arrays)
    if missing := sorted(quantities[""] - quantities[REFERENCE]) if prefix else []:
        raise InputError(
            f"it holds {_listed(families[REFERENCE], REFERENCE)}, but {' and '.join(missing)} only without "
            f"{REFERENCE}; all of a frame's numbers must be of one method: rename or remove the others"
        )
    mine = families[prefix]

    def first(names: tuple[str, ...]) -> tuple[str, Any] | None:
        return next(((prefix + name, mine[name]) for name in names if name in mine), None)

    energy, force, stress = first(ENERGIES), first(FORCES), first(STRESSES)
    tensor = np.full((3, 3), np.nan)
    if volume > 0:
        virial = first(VIRIALS)
        tensors = [tensor_of(prefix + name, mine[name]) for name in VIRIALS if name in mine]
        if len(tensors) > 1 and not np.allclose(*tensors, rtol=AGREE):
            raise InputError(f"{' and '.join(prefix + name for name in VIRIALS)} differ; give one of them (eV)")
        if stress is not None:
            tensor = tensor_of(*stress)
        if virial is not None:
            other = -tensor_of(*virial) / volume
            if stress is not None and np.abs(other - tensor).max() > AGREE * max(np.abs(tensor).max(), 1e-6):
                raise InputError(f"{stress[0]} is not -{virial[0]}/volume; give one of them (eV/Å^3, eV)")
            tensor = other if stress is None else tensor
        if prefix == "" and stress is not None and (exact := info.get(MATRIX)) is not None:
            matrix = _finite(MATRIX, exact, (3, 3))  # of our own writing
            six = (matrix_to_voigt(each) for each in (matrix, matrix.T, 0.5 * (matrix + matrix.T)))  # readers differ
            off = min(np.abs(each - matrix_to_voigt(tensor)).max() for each in six)
            if off <= ROUNDED * np.abs(tensor).max():  # else it was left there when another stress was calculated
                tensor = matrix
    return Numbers(
        float("nan") if energy is None else float(_finite(*energy, ())),
        np.full((atoms, 3), np.nan) if force is None else _finite(*force, (atoms, 3)),
        tensor,
    )


def family_of(info: Mapping[str, Any], arrays: Mapping[str, Any]) -> str:
    """What the names of a frame's reference numbers begin with: REF_, or nothing."""
    named = (REFERENCE + name for name in PLAIN)
    return REFERENCE if any(info.get(name) is not None or arrays.get(name) is not None for name in named) else ""


def share_of(info: Mapping[str, Any]) -> Share:
    """The weights that a frame's info gives. Raises InputError for one that is no number or below zero."""
    product = dict.fromkeys(SHARES, 1.0)
    for quantity, names in SHARES.items():
        for name in names:
            if (value := info.get(name)) is None:
                continue
            weight = float(_finite(name, value, ()))
            if weight < 0:
                raise InputError(f"{name}: {weight:g} is below zero; give 0 to leave the frame out, or more")
            product[quantity] *= weight
    return Share(**product)


def known(numbers: Numbers, fixed: np.ndarray, share: Share = Share()) -> Numbers:  # noqa: B008
    """The numbers that can be learned from: those that count, without the forces that a constraint has hidden.

    Programs and ASE write zeros for the forces on fixed atoms [n]. Where all of them are zero they say nothing.
    """
    force = numbers.force
    if masked(force, fixed):
        force = np.where(fixed[:, None], np.nan, force)
    nothing = float("nan")
    return Numbers(
        numbers.energy if share.energy else nothing,
        force if share.force else np.full_like(force, nothing),
        numbers.stress if share.stress else np.full((3, 3), nothing),
    )


def masked(force: np.ndarray, fixed: np.ndarray) -> bool:
    """Whether a program has hidden the forces [n 3] on the fixed atoms [n]."""
    return bool(np.any(fixed) and not np.any(force[fixed]))


def lookalikes(info: Mapping[str, Any], arrays: Mapping[str, Any], what: str) -> list[str]:
    """Keys that could be meant for `what`, energy or forces."""
    place, word = (info, "energ") if what == "energy" else (arrays, "force")
    return sorted(str(key) for key in place if word in str(key).lower() and key not in KEYS | SHARE_KEYS)


def voigt_to_matrix(stress: np.ndarray) -> np.ndarray:
    """ASE's xx yy zz yz xz xy as a symmetric [3, 3] matrix."""
    xx, yy, zz, yz, xz, xy = stress
    return np.array([[xx, xy, xz], [xy, yy, yz], [xz, yz, zz]])


def matrix_to_voigt(stress: np.ndarray) -> np.ndarray:
    """The six independent components in ASE's order xx yy zz yz xz xy."""
    return np.array([stress[0, 0], stress[1, 1], stress[2, 2], stress[1, 2], stress[0, 2], stress[0, 1]])


def _quantities(family: Mapping[str, Any], periodic: bool) -> set[str]:
    kinds: dict[str, tuple[str, ...]] = {"energy": ENERGIES, "forces": FORCES}
    if periodic:
        kinds["stress"] = STRESSES + VIRIALS
    return {kind for kind, names in kinds.items() if any(name in family for name in names)}


def _listed(family: Mapping[str, Any], prefix: str) -> str:
    return " and ".join(prefix + name for name in family)


def _finite(name: str, value: Any, shape: tuple[int, ...]) -> np.ndarray:
    """`value` as finite float64 of this shape."""
    kind = np.asarray(value)
    numeric: Callable[[np.ndarray], bool] = lambda array: array.dtype.kind in "iuf"  # noqa: E731
    if not numeric(kind):
        raise InputError(f"{name}: {' '.join(str(value).split())[:30]!r} is no number")
    array = np.asarray(value, float)
    if array.shape != shape and array.size == 1 and shape == ():
        array = array.reshape(())
    if array.shape != shape:
        raise InputError(f"{name}: numbers {list(array.shape)}, where {list(shape)} are needed")
    if not np.all(np.isfinite(array)):
        raise InputError(f"{name}: not a finite number; leave the frame out")
    if array.size and np.abs(array).max() > BEYOND:
        raise InputError(f"{name}: {np.abs(array).max():.3g} cannot be; leave the frame out")
    return array


def tensor_of(name: str, value: Any) -> np.ndarray:
    """Six numbers in ASE's order or nine, as [3 3]."""
    array = np.asarray(value)
    if array.size not in (6, 9) or array.dtype.kind not in "iuf":
        raise InputError(f"{name}: {array.size} numbers; give six (xx yy zz yz xz xy) or nine")
    matrix = voigt_to_matrix(array.ravel()) if array.size == 6 else array.reshape(3, 3)
    matrix = _finite(name, matrix, (3, 3))
    if np.abs(matrix - matrix.T).max() > SYMMETRIC * max(np.abs(matrix).max(), 1e-6):
        raise InputError(f"{name}: its nine numbers are not symmetric; give six (xx yy zz yz xz xy) or nine")
    return matrix
