"""The finished potential as one file: numpy arrays and a JSON header, no code, nothing to unpickle.

The header names every leaf of the parameters with its dtype, in order; the tree they make is that of the potential's
own `init`, so that a potential may have any pytree of numbers (see `weights`).
"""

import functools
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxal.committee import evaluation as committees
from jaxal.committee import weights
from jaxal.committee.evaluation import Batching, Committee, predict
from jaxal.committee.isolated_atoms import exact_when_isolated
from jaxal.core import discovery, plugins
from jaxal.core.devices import ready, refuse_fork
from jaxal.core.placement import Placement, placement
from jaxal.core.types import InputError, Params, Potential, Prediction, Structure, Uncertainty
from jaxal.data import neighbors
from jaxal.data.electrons import State, check_electrons, listed, or_none
from jaxal.uncertainty import bound
from jaxal.uncertainty.bound import Calibration
from jaxal.uncertainty.support import Support, novelty, of_arrays

FILE_NAME = "model.npz"
FORMAT = 6
FIELDS = ("potential", "precision", "electrons", "heads", "signs", "uncertainty", "isolated")  # as they are
KINDS = ("potential", "uncertainty")  # of the parts a model has

KEPT = 8  # kinds of models of which compiled programs are kept

SUPPORT = "support/"  # begins the names of its arrays in a file

Options = tuple[tuple[str, Any], ...]
# (padded atoms, directions in which any structure repeats) -> room for neighbors
Specs = dict[tuple[int, tuple[bool, ...]], neighbors.Spec]


class Model(NamedTuple):
    """A trained committee and what is needed to use it."""

    potential: str  # name of the registered potential
    options: Options  # its options
    table: tuple[int, ...]  # atomic numbers of the species
    params: Params  # sets of weights leading, [r]: the members of a full committee
    reference: np.ndarray  # [s] float64, eV: total energy = model's + sum of those of the atoms
    precision: str  # float32 or float64
    states: tuple[State, ...]  # charges (e) and numbers of unpaired electrons at which it was trained
    heads: int = 1  # members on each set of weights
    signs: int = 0  # random combinations of them, see `committee.evaluation.Committee`
    uncertainty: str = "members"  # name of the registered method
    uncertainty_options: Options = ()
    electrons: bool = True  # False: trained on structures that cannot have their charge and spin, as of a closed form
    isolated: bool = False  # isolated atoms are exact, of those species that its parameters say
    calibration: Calibration | None = None  # None: it has no bound
    support: Support | None = None  # None: it is not known what is supported


def potential(model: Model, sources: Mapping[str, Any] | None = None) -> Potential:
    """The registered potential with the model's options.

    `sources` is who registers the parts, as a model file says it. Raises InputError if it is not registered, or does
    not take the options.
    """
    factory = _part("potential", model.potential, sources)
    try:
        return _potential(factory, model.table, model.options, model.isolated)
    except (TypeError, ValueError) as error:
        raise InputError(f"model: the potential {model.potential} cannot be built: {error}") from None


@functools.lru_cache(KEPT)
def _potential(factory: Callable, table: tuple[int, ...], options: Options, isolated: bool) -> Potential:
    """Of the same kind the same functions: what was compiled of one model serves all of its kind."""
    own = weights.collected(factory(table, **dict(options)))
    return exact_when_isolated(own, table) if isolated else own


def unsaid(model: Model) -> tuple[int | None, int | None]:
    """Charge and spin of structures that do not say theirs: the model's; None, which is 0, if it has several or 0."""
    return or_none(*model.states[0]) if len(model.states) == 1 else (None, None)


def check_state(model: Model, numbers: np.ndarray, periodic: np.ndarray, charge: int, spin: int) -> None:
    """Raises InputError for a charge and spin that the model was not trained at, or that these atoms [n] cannot have.

    A model of structures that cannot have theirs knows no electrons.
    """
    if (charge, spin) in model.states:
        if model.electrons and not np.any(periodic):  # the bands of a crystal hold as many as they like
            try:
                check_electrons(numbers, charge, spin)
            except InputError as error:
                raise InputError(f"the model was trained at charge {charge} and spin {spin}; {error}") from None
        return
    if len(model.states) != 1:
        known = f"it knows {listed(model.states)}"
        raise InputError(f"the model was not trained at {listed([(charge, spin)])}; {known}")
    trained = model.states[0]
    name, value, known = ("charge", charge, trained[0]) if charge != trained[0] else ("spin", spin, trained[1])
    more = "" if model.electrons else ", of structures that did not say theirs; leave it out"
    raise InputError(f"their {name} is {value}, but the model was trained at {known}{more}")


def committee(model: Model, batching: Batching = "auto", sources: Mapping[str, Any] | None = None) -> Committee:
    """The committee that the model's parameters belong to. Raises InputError as `potential` does."""
    return _committee(model, _members(model), batching, sources)


def has_spread(model: Model) -> bool:
    """Whether the model says how sure it is: one member without a method of uncertainty does not."""
    return model.uncertainty != "members" or _members(model) > 1


def _members(model: Model) -> int:
    return model.heads * len(jax.tree.leaves(model.params)[0])


def _committee(model: Model, members: int, batching: Batching, sources: Mapping[str, Any] | None) -> Committee:
    part, kinds = potential(model, sources), len(model.table)
    method = _part("uncertainty", model.uncertainty, sources)
    try:
        spread = _uncertainty(method, part, kinds, model.uncertainty_options)
    except (TypeError, ValueError) as error:
        raise InputError(f"model: the uncertainty {model.uncertainty} cannot be built: {error}") from None
    return Committee(part, members, batching, model.heads, model.signs, kinds, spread)


@functools.lru_cache(KEPT)
def _uncertainty(method: Callable, part: Potential, kinds: int, options: Options) -> Uncertainty | None:
    return method(part, kinds, **dict(options))


def _part(kind: str, name: str, sources: Mapping[str, Any] | None) -> Callable:
    discovery.import_own(kind)
    return plugins.part(kind, name, sources or {}, "model")


def save(path: str | Path, model: Model) -> None:
    """Writes the model; an existing file is replaced only when the new one is complete."""
    path = Path(path)
    leaves, _ = jax.tree_util.tree_flatten_with_path(weights.collections(model.params))
    values = [np.asarray(leaf) for _, leaf in leaves]
    sources = {kind: plugins.source_of(kind, getattr(model, kind)) for kind in KINDS}
    header = {
        "format": FORMAT,
        **{name: getattr(model, name) for name in FIELDS},
        "options": dict(model.options),
        "uncertainty_options": dict(model.uncertainty_options),
        "table": list(model.table),
        "states": [list(state) for state in model.states],
        "calibration": None if model.calibration is None else model.calibration.header(),
        "leaves": [[jax.tree_util.keystr(where), x.dtype.name] for (where, _), x in zip(leaves, values, strict=True)],
        "sources": {kind: source._asdict() for kind, source in sources.items() if source is not None},
    }
    # numpy's format does not know types such as bfloat16: their bytes go into the file
    arrays = {str(row): x.view(f"u{x.dtype.itemsize}") if x.dtype.kind == "V" else x for row, x in enumerate(values)}
    if model.support is not None:
        arrays |= {SUPPORT + name: np.asarray(value) for name, value in model.support._asdict().items()}
    arrays |= {"header": np.array(json.dumps(header)), "reference": np.asarray(model.reference, np.float64)}
    part = path.with_name(path.name + ".part")
    with open(part, "wb") as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)
    part.replace(path)


def load(path: str | Path) -> Model:
    """A model file, or the model of a run folder.

    Raises InputError where there is none, where the file is no model of this format, where a part of it is not
    registered, and where its parameters are not those of the potential.
    """
    path = Path(path)
    if path.is_dir():
        if not (path / FILE_NAME).is_file():
            raise InputError(f"{path}: the folder holds no {FILE_NAME}; a run writes it as it goes, see `jaxal resume`")
        path = path / FILE_NAME
    if not path.is_file():
        raise InputError(f"{path}: there is no such model file or run folder")
    try:
        with np.load(path, allow_pickle=False) as file:
            header = json.loads(str(file["header"]))
            _check_format(header.get("format"), path)
            reference = file["reference"]
            leaves = [_typed(file[str(row)], dtype) for row, (_, dtype) in enumerate(header["leaves"])]
            kept = {name: file[SUPPORT + name] for name in Support._fields if SUPPORT + name in file.files}
        model = _described(header, reference)._replace(support=of_arrays(kept, len(header["table"])))
        names = [name for name, _ in header["leaves"]]
    except InputError:
        raise
    except Exception as error:  # a damaged archive raises many kinds
        raise InputError(f"{path}: not a model file of jaxal ({type(error).__name__})") from error
    try:
        return model._replace(params=_tree(model, header["sources"], names, leaves))
    except InputError as error:
        raise InputError(f"{path}: {str(error).removeprefix('model: ')}") from None


def _check_format(number: Any, path: Path) -> None:
    """Raises InputError, which says who wrote the file, for another format."""
    if number == FORMAT:
        return
    if isinstance(number, int) and number > FORMAT:
        raise InputError(f"{path}: written by a newer jaxal (model format {number}); this one reads format {FORMAT}")
    raise InputError(
        f"{path}: written by an older jaxal (model format {number}); this one reads format {FORMAT}: train it again"
    )


def _typed(array: np.ndarray, dtype: str) -> np.ndarray:
    """An array of the file in the dtype it had."""
    kind = jnp.dtype(dtype)
    if array.dtype == kind:
        return array
    if kind.kind != "V" or array.dtype != np.dtype(f"u{kind.itemsize}"):
        raise ValueError(f"{array.dtype} is not {dtype}")
    return array.view(kind)


def _described(header: dict[str, Any], reference: np.ndarray) -> Model:
    """The model of a file's header, without parameters."""
    return Model(
        options=tuple((name, _frozen(value)) for name, value in header["options"].items()),
        uncertainty_options=tuple((name, _frozen(value)) for name, value in header["uncertainty_options"].items()),
        table=tuple(int(number) for number in header["table"]),
        states=tuple((int(charge), int(spin)) for charge, spin in header["states"]),
        params={},
        reference=reference,
        calibration=bound.of_header(header["calibration"]),
        **{name: header[name] for name in FIELDS},
    )


def _frozen(value: Any) -> Any:
    """An option as a configuration has it: JSON knows no tuples."""
    return tuple(_frozen(item) for item in value) if isinstance(value, list) else value


def _tree(model: Model, sources: Mapping[str, Any], names: list[str], leaves: list[np.ndarray]) -> Params:
    """The leaves of a file in the tree of the potential. Raises InputError where they are of another one."""
    if not leaves or not all(leaf.ndim for leaf in leaves):
        raise InputError("model: holds no parameters")
    like = shapes(model, len(leaves[0]), sources)
    flat, structure = jax.tree_util.tree_flatten_with_path(like)
    there = [jax.tree_util.keystr(where) for where, _ in flat]
    what = f"the potential {model.potential} of this version"
    if names != there:
        odd = next(iter(sorted(set(names) ^ set(there))), "their order")
        raise InputError(f"model: holds other parameters than {what} has (they differ in {odd})")
    for name, leaf, (_, example) in zip(names, leaves, flat, strict=True):
        if leaf.shape != example.shape or leaf.dtype != example.dtype:
            has = f"{example.dtype.name} {example.shape}"
            raise InputError(f"model: its parameter {name} is {leaf.dtype.name} {leaf.shape}, that of {what} is {has}")
    return jax.tree_util.tree_unflatten(structure, leaves)


def shapes(model: Model, replicas: int, sources: Mapping[str, Any] | None = None) -> Params:
    """Shapes and dtypes of the parameters of a model of so many sets of weights, [r] leading; nothing is computed.

    Raises InputError as `potential` does, and for parameters that a model cannot have.
    """
    part = _committee(model, model.heads * replicas, "auto", sources or {})
    try:
        return committees.shapes(part, model.precision)
    except InputError:
        raise
    except Exception as error:  # options of a damaged file
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise InputError(f"model: the potential {model.potential} cannot be built ({reason})") from None


def predictor(
    model: Model,
    batching: Batching = "auto",
    specs: Specs | None = None,
    sources: Mapping[str, Any] | None = None,
) -> Callable[[Structure], Prediction]:
    """The committee as a host function: structures [b] in, Prediction [b m ...] out, without the reference energies.

    It says how new each structure is, where the model knows what it supports. Neighbor capacities are found as needed
    and kept in `specs`, so like structures compile once; the same capacities give the same bits. Raises InputError in a
    process that was forked from one that uses JAX.
    """
    ready()
    part = committee(model, batching, sources)
    double = model.precision == "float64"
    with jax.enable_x64(double):
        params = jax.device_put(weights.collections(model.params))
        support = jax.device_put(model.support)
    room: Specs = {} if specs is None else specs

    compiled = _compiled(part, placement())

    def predicted(structures: Structure) -> Prediction:
        refuse_fork()
        with jax.enable_x64(double):
            return evaluate(structures)

    def evaluate(structures: Structure) -> Prediction:
        structures = jax.device_put(structures)
        kind = structures.species.shape[-1], tuple(np.any(np.asarray(structures.periodic), axis=0).tolist())
        if kind not in room:
            room[kind] = neighbors.plan(structures, part.potential.cutoff, 0.0, 1.25)
        prediction, overflow = compiled(room[kind], params, support, structures)
        if overflow:
            room[kind] = neighbors.larger(room[kind], structures)
            prediction, _ = compiled(room[kind], params, support, structures)
        return prediction

    return predicted


@functools.lru_cache(KEPT)
def _compiled(part: Committee, where: Placement) -> Callable:
    """The compiled program of a committee, of (room, parameters, support, structures), on this platform."""
    del where

    def run(spec: neighbors.Spec, params: Params, support: Support | None, structures: Structure):
        near = jax.vmap(lambda s: neighbors.build(spec, s))(structures)
        prediction = predict(part, params, structures, near)
        if support is not None:
            inputs = support, prediction.feature, structures, near, part.potential.cutoff
            away = jax.vmap(novelty, (None, 0, 0, 0, None))(*inputs)
            prediction = prediction._replace(novelty=away)
        return prediction, jnp.any(near.overflow)

    return jax.jit(run, static_argnums=0)
