"""Collective variables: what walkers are driven along, and what is written down of them.

A variable is a function of a structure, registered under its name, `(structure, *, options) -> values [k]`; `about`
says its unit and its period. Atoms are numbered from 0, as in ASE. An option marked `ATOMS` holds numbers of atoms in a
fixed form, one marked `SELECTION` numbers and symbols of elements in any mixture, one marked `REFERENCE` a file with a
structure of the same atoms; `bound` checks them against the structure that walkers start from and gives the function
numbers and positions alone.

Distances are those to the nearest image through the periodic directions of the cell, the shortest there are. Gradients
are finite everywhere: where a direction is not defined, as between atoms in one place, they are zero.
"""

import itertools
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, get_args

import ase
import jax
import jax.numpy as jnp
import numpy as np
from ase.data import atomic_numbers
from ase.geometry import minkowski_reduce
from jaxtyping import Array, Bool, Float, Int

from jaxal.core import registry
from jaxal.core.precision import exact
from jaxal.core.registry import register
from jaxal.core.types import Coordinate, InputError, Structure, Variable, Variables
from jaxal.core.units import Unit
from jaxal.data import files
from jaxal.data.cell import completed, inverse

ATOMS, SELECTION, REFERENCE = "atoms", "selection", "reference"  # marks of options, see above
Atom = Annotated[int, Unit("", 0)]
Pair = tuple[Atom, Atom]
Atoms = Annotated[Atom | str | tuple[Atom | str, ...], SELECTION]
Reference = Annotated[Path | None, REFERENCE]
IMAGES = np.array(list(itertools.product((0, -1, 1), repeat=3)))  # the first is none
NONE = Variables((), (), (), lambda structure: jnp.zeros(0, structure.position.dtype))
SQUARINGS = 24  # of the matrix whose eigenvector is a rotation: its power is 2^24


def _length(**_: Any) -> Coordinate:
    return Coordinate("Å")


@register("variable", about=_length)
def distance(structure: Structure, *, atoms: Annotated[Pair, ATOMS]) -> Float[Array, "1"]:
    """Distance of two atoms, Å."""
    return _distances(structure, (atoms,))


@register("variable", about=_length)
def difference(structure: Structure, *, pairs: Annotated[tuple[Pair, Pair], ATOMS]) -> Float[Array, "1"]:
    """Distance of the first of two `pairs` of atoms less that of the second, Å: an atom between two others."""
    first, second = _distances(structure, pairs)
    return (first - second)[None]


@register("variable", about=_length)
def linear_combination(
    structure: Structure, *, pairs: Annotated[tuple[Pair, ...], ATOMS], coefficients: tuple[float, ...]
) -> Float[Array, "1"]:
    """Sum of the distances of `pairs` of atoms times their `coefficients`, Å."""
    if len(pairs) != len(coefficients) or not pairs:
        raise InputError(f"coefficients: {len(coefficients)} for {len(pairs)} pairs; give one for each pair")
    distances = _distances(structure, pairs)
    return jnp.sum(jnp.asarray(coefficients, distances.dtype) * distances)[None]


@register("variable", about=lambda **_: Coordinate("rad"))
def angle(structure: Structure, *, atoms: Annotated[tuple[Atom, Atom, Atom], ATOMS]) -> Float[Array, "1"]:
    """Angle at the second of three atoms, rad, 0 to pi.

    atan2(|a x b|, a . b), which is as exact near 0 and pi as elsewhere.
    """
    i, j, k = atoms
    a, b = vectors(structure, (j, j), (i, k))
    return _atan2(norm(jnp.cross(a, b)), jnp.dot(a, b))[None]


@register("variable", about=lambda **_: Coordinate("rad", 2 * np.pi))
def torsion(structure: Structure, *, atoms: Annotated[tuple[Atom, Atom, Atom, Atom], ATOMS]) -> Float[Array, "1"]:
    """Torsion of four atoms around the bond of the middle two, rad, -pi to pi; 0 is eclipsed.

    atan2(|b| a . (b x c), (a x b) . (b x c)) of the three bonds a, b, c, with IUPAC's sign. Blondel and Karplus,
    J. Comput. Chem. 17, 1132 (1996).
    """
    a, b, c = vectors(structure, atoms[:3], atoms[1:])
    first, second = jnp.cross(a, b), jnp.cross(b, c)
    return _atan2(norm(b) * jnp.dot(a, second), jnp.dot(first, second))[None]


@register("variable", about=lambda **_: Coordinate(""))
def coordination(
    structure: Structure, *, of: Atoms, by: Atoms, reach: Annotated[float, Unit("Å", 0.0, exclusive=True)] = 1.5
) -> Float[Array, "1"]:
    """Number of atoms `by` around the atoms `of`, smoothly: sum of (1 - x^6) / (1 - x^12), x = distance / `reach`.

    `of` and `by` are numbers of atoms and symbols of elements, one or a list. Periodic images count as atoms, the 27
    that are nearest. What is divided out, 1 / (1 + x^6), has a finite gradient at x = 1 and at 0. Divide by the number
    of the atoms `of` for the coordination of each. Iannuzzi, Laio and Parrinello, Phys. Rev. Lett. 90, 238302 (2003).
    """
    first, second = (np.array(x).ravel() for x in np.meshgrid(of, by, indexing="ij"))
    each, there = _images(structure, first, second)
    other = there & ~((first == second)[:, None] & (IMAGES == 0).all(1))
    square = jnp.sum(jnp.where(other[..., None], each, 1.0) ** 2, axis=-1)
    return jnp.sum(jnp.where(other, 1 / (1 + (square / reach**2) ** 3), 0.0))[None]


@register("variable", about=_length)
def rmsd(structure: Structure, *, atoms: Atoms | None = None, reference: Reference = None) -> Float[Array, "1"]:
    """Root-mean-square deviation of atoms from a reference after superposition, Å.

    `atoms` are numbers of atoms and symbols of elements, by default all; `reference` is a file with a structure of the
    same atoms, by default the first that the walkers start from. The rotation is the unit quaternion that is the
    eigenvector to the largest eigenvalue of a symmetric 4x4 matrix (Horn, J. Opt. Soc. Am. A 4, 629, 1987), here by
    squaring the matrix, so it is never a reflection. At the best rotation the deviation does not depend on it to first
    order: its gradient is that at a fixed rotation. In a periodic cell the atoms are put together as nearest images of
    the first one, which must all lie within half of the cell.
    """
    rows = np.arange(len(structure.species)) if atoms is None else np.asarray(atoms)
    from_first = np.full(len(rows), rows[0]), rows
    model = vectors(structure._replace(position=jnp.asarray(reference, structure.position.dtype)), *from_first)
    place = vectors(structure, *from_first)
    place, model = place - jnp.mean(place, axis=0), model - jnp.mean(model, axis=0)
    turned = place @ jax.lax.stop_gradient(_rotation(place, model)).T
    return norm(turned - model, axis=None)[None] / len(rows) ** 0.5


def bound(choices: Sequence[tuple[str, Mapping[str, Any]]], start: ase.Atoms, field: str) -> Variables:
    """Variables by name and options, for structures of the same atoms as `start`, as functions of a structure alone.

    Raises InputError, with the option below `field`, for atoms that `start` does not have and for a reference of
    others.
    """
    if not choices:
        return NONE
    bound: list[Variable] = []
    names: list[str] = []
    abouts: list[Coordinate] = []
    for row, (name, options) in enumerate(choices):
        place = field if len(choices) == 1 else f"{field}[{row}]"
        variable = _bound(name, options, start, place)
        try:
            size = jax.eval_shape(variable, _shapes(len(start))).shape[0]
        except InputError as error:
            raise InputError(f"{place}.{error}") from None
        bound.append(variable)
        names += [name] if size == 1 else [f"{name}_{k}" for k in range(size)]
        abouts += [registry.about("variable", name, **options) or Coordinate("")] * size
    operation = _reduction(start)

    @partial(jax.jit, inline=True)  # one program where it is called outside of one
    @exact
    def values(structure: Structure) -> Float[Array, "v"]:
        if operation is not None:
            structure = structure._replace(cell=jnp.asarray(operation, structure.cell.dtype) @ structure.cell)
        return jnp.concatenate([variable(structure) for variable in bound])

    return Variables(tuple(names), tuple(x.unit for x in abouts), tuple(x.period for x in abouts), values)


def _shapes(atoms: int) -> Any:
    """A structure as shapes."""
    number, zero = (atoms, 3), np.zeros
    vectors, flags, whole = zero(number), zero(atoms, bool), zero((), int)
    own: Any = vectors, zero(atoms, int), zero((3, 3)), zero(3, bool), zero(atoms), flags, whole, whole
    return Structure(*own)


def _bound(name: str, options: Mapping[str, Any], start: ase.Atoms, field: str) -> Variable:
    """One variable with its options checked and resolved."""
    resolved = dict(options)
    for option in registry.options("variable", name):
        marks, value, place = _marks(option.annotation), options[option.name], f"{field}.{option.name}"
        if ATOMS in marks:
            _check_numbers(value, start, place)
        elif SELECTION in marks and value is not None:
            resolved[option.name] = _selected(value, start, place)
        elif SELECTION in marks:
            resolved[option.name] = tuple(range(len(start)))
        elif REFERENCE in marks:
            resolved[option.name] = _reference(value, start, place)
    function = registry.get("variable", name)
    return lambda structure: function(structure, **resolved)


def _marks(annotation: Any) -> set[str]:
    """The marks of an option, also inside of a union."""
    marks = {mark for mark in getattr(annotation, "__metadata__", ()) if isinstance(mark, str)}
    return marks.union(*(_marks(inner) for inner in get_args(annotation) if not isinstance(inner, str)))


def _check_numbers(value: Any, start: ase.Atoms, field: str) -> None:
    """Raises InputError for numbers that no atom has, and for one atom twice in a distance, an angle or a torsion."""
    if any(isinstance(each, tuple | list) for each in value):
        for each in value:
            _check_numbers(each, start, field)
        return
    for number in value:
        _check_number(number, start, field)
    if len(set(value)) < len(value):
        raise InputError(f"{field}: {list(value)} names an atom twice; give different ones")


def _check_number(number: int, start: ase.Atoms, field: str) -> None:
    if not 0 <= number < len(start):
        held = f"the structure has {len(start)} atoms, 0 to {len(start) - 1}"
        raise InputError(f"{field}: there is no atom {number}; {held}")


def _selected(value: Any, start: ase.Atoms, field: str) -> tuple[int, ...]:
    """Numbers of the atoms that numbers and symbols of elements name, in order."""
    listed = value if isinstance(value, tuple | list) else (value,)
    rows: set[int] = set()
    for each in listed:
        if isinstance(each, str):
            there = np.flatnonzero(start.numbers == atomic_numbers.get(each, -1))
            if not len(there):
                elements = ", ".join(dict.fromkeys(start.symbols))
                raise InputError(f"{field}: the structure has no atoms {each!r}; give numbers, or of {elements}")
            rows |= set(there.tolist())
        else:
            _check_number(each, start, field)
            rows.add(each)
    if not rows:
        raise InputError(f"{field}: an empty list names no atoms; give numbers of atoms or symbols of elements")
    return tuple(sorted(rows))


def _reference(file: Path | None, start: ase.Atoms, field: str) -> Float[np.ndarray, "n 3"]:
    """Positions of the one structure in a file, or of the start."""
    if file is None:
        return np.array(start.positions)
    frames = files.read(file, labeled=False)
    if len(frames) != 1 or not np.array_equal(frames[0].numbers, start.numbers):
        what = f"{len(frames)} structures" if len(frames) != 1 else "other atoms, or the same in another order"
        raise InputError(f"{field}: {file} holds {what}; give one structure of {start.get_chemical_formula()}")
    return np.array(frames[0].position)


def _reduction(start: ase.Atoms) -> Int[np.ndarray, "3 3"] | None:
    """Whole numbers that make of the cell's vectors the shortest of the same lattice; None where they are so.

    Of such a cell the nearest image is among the 27 around that by rounding. Nguyen and Stehlé, ACM Trans. Algorithms
    5, 46 (2009).
    """
    if not start.pbc.any():
        return None
    operation = np.asarray(minkowski_reduce(start.cell.complete(), start.pbc)[1])  # pyright: ignore[reportArgumentType]
    return None if np.array_equal(operation, np.eye(3)) else operation


def _images(structure: Structure, first: Any, second: Any) -> tuple[Float[Array, "p 27 3"], Bool[Array, "p 27"]]:
    """Vectors from atoms to images of others: the one by rounding and those around it. And which of them there are."""
    straight, cell = structure.position[second] - structure.position[first], structure.cell
    periodic = structure.periodic
    whole = completed(cell, periodic)
    rounded = jnp.where(periodic, jnp.round(jax.lax.stop_gradient(_times(straight, inverse(whole)))), 0.0)
    shift = jnp.where(periodic, IMAGES.astype(cell.dtype) - rounded[:, None, :], 0.0)
    there = jnp.all(periodic | (IMAGES == 0), axis=-1)
    each = straight[:, None, :] + _times(shift, cell)
    return each, jnp.broadcast_to(there, each.shape[:2])


def _times(rows: Float[Array, "... 3"], cell: Float[Array, "3 3"]) -> Float[Array, "... 3"]:
    """The product of rows and a cell, written out: many products so small are slow."""
    return sum(rows[..., k, None] * cell[k] for k in range(3))  # pyright: ignore[reportReturnType]


def vectors(structure: Structure, first: Any, second: Any) -> Float[Array, "p 3"]:
    """Shortest vectors from atoms to images of others, by their numbers, Å."""
    each, there = _images(structure, np.asarray(first), np.asarray(second))
    square = jnp.where(there, jax.lax.stop_gradient(jnp.sum(each**2, axis=-1)), jnp.inf)
    nearest = jax.nn.one_hot(jnp.argmin(square, axis=-1), len(IMAGES), dtype=each.dtype)
    return jnp.sum(nearest[..., None] * jnp.where(there[..., None], each, 0.0), axis=1)


def _distances(structure: Structure, pairs: Sequence[Pair]) -> Float[Array, "p"]:
    first, second = np.array(pairs).T
    return norm(vectors(structure, first, second))


def norm(vector: Float[Array, "..."], axis: int | None = -1) -> Float[Array, "..."]:
    """The length, with no gradient where it is zero."""
    square = jnp.sum(vector**2, axis=axis)
    return jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1.0)), 0.0)


def _atan2(y: Float[Array, ""], x: Float[Array, ""]) -> Float[Array, ""]:
    """atan2, with no gradient where it has none."""
    some = (x != 0) | (y != 0)
    return jnp.where(some, jnp.arctan2(jnp.where(some, y, 0.0), jnp.where(some, x, 1.0)), 0.0)


def _rotation(place: Float[Array, "p 3"], model: Float[Array, "p 3"]) -> Float[Array, "3 3"]:
    """The rotation R for which the rows of place @ R.T are nearest to those of the model."""
    s = place.T @ model
    (xx, xy, xz), (yx, yy, yz), (zx, zy, zz) = s
    matrix = jnp.array(
        [
            [xx + yy + zz, yz - zy, zx - xz, xy - yx],
            [yz - zy, xx - yy - zz, xy + yx, zx + xz],
            [zx - xz, xy + yx, yy - xx - zz, yz + zy],
            [xy - yx, zx + xz, yz + zy, zz - xx - yy],
        ]
    )
    size = jnp.sqrt(jnp.sum(matrix**2))  # no eigenvalue is larger: of the shifted matrix none is negative
    power = matrix / jnp.where(size > 0, size, 1.0) + jnp.eye(4, dtype=s.dtype)
    for _ in range(SQUARINGS):
        power = power @ power
        power = power / jnp.trace(power)
    longest = power[:, jnp.argmax(jnp.diagonal(power))]
    w, x, y, z = longest / norm(longest)
    return jnp.array(
        [
            [w * w + x * x - y * y - z * z, 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), w * w - x * x + y * y - z * z, 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), w * w - x * x - y * y + z * z],
        ]
    )
