"""The finished potential as one file: numpy arrays and a JSON header, no code, nothing to unpickle."""

import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxal import neighbors, registry
from jaxal.committee import Batching, Committee, predict
from jaxal.types import InputError, Params, Potential, Prediction, Structure
from jaxal.uncertainty import METHODS

FILE_NAME = "model.npz"
# modules whose parts a model may have
BUILT_IN = ("jaxal.potential.equivariant", *(f"jaxal.uncertainty.{name}" for name in METHODS))
FORMAT = 3
FIELDS = ("potential", "precision", "charge", "spin", "heads", "signs", "uncertainty")  # of the header, as they are


class Model(NamedTuple):
    """A trained committee and what is needed to use it."""

    potential: str  # name of the registered potential
    options: tuple[tuple[str, Any], ...]  # its options
    table: tuple[int, ...]  # atomic numbers of the species
    params: Params  # sets of weights leading, [r]: the members of a full committee
    reference: np.ndarray  # [s] float64, eV: total energy = model's + sum of those of the atoms
    factor: float  # estimated largest force error of an atom, eV/Å = factor * max_force_spread
    precision: str  # float32 or float64
    charge: int  # e, at which it was trained
    spin: int  # unpaired electrons, at which it was trained
    heads: int = 1  # members on each set of weights
    signs: int = 0  # random combinations of them, see `committee.Committee`
    uncertainty: str = "members"  # name of the registered method
    uncertainty_options: tuple[tuple[str, Any], ...] = ()


def potential(model: Model) -> Potential:
    """The registered potential with the model's options. Raises InputError if it is not registered."""
    for module in BUILT_IN:
        importlib.import_module(module)
    try:
        factory = registry.get("potential", model.potential)
    except KeyError as error:
        raise InputError(f"model: {error.args[0]}; import the module that registers it first") from None
    return factory(model.table, **dict(model.options))


def committee(model: Model, batching: Batching = "auto") -> Committee:
    """The committee that the model's parameters belong to. Raises InputError as `potential` does."""
    members = model.heads * len(jax.tree.leaves(model.params)[0])
    part, kinds = potential(model), len(model.table)
    try:
        method = registry.get("uncertainty", model.uncertainty)
    except KeyError as error:
        raise InputError(f"model: {error.args[0]}; import the module that registers it first") from None
    spread = method(part, kinds, **dict(model.uncertainty_options))
    return Committee(part, members, batching, model.heads, model.signs, kinds, spread)


def save(path: str | Path, model: Model) -> None:
    """Writes the model; an existing file is replaced only when the new one is complete."""
    path = Path(path)
    leaves, _ = jax.tree_util.tree_flatten_with_path(model.params)
    arrays = {"/".join(str(part.key) for part in where): np.asarray(leaf) for where, leaf in leaves}
    header = {
        "format": FORMAT,
        **{name: getattr(model, name) for name in FIELDS},
        "options": dict(model.options),
        "uncertainty_options": dict(model.uncertainty_options),
        "table": list(model.table),
        "factor": float(model.factor) if np.isfinite(model.factor) else None,
    }
    arrays |= {"header": np.array(json.dumps(header)), "reference": np.asarray(model.reference, np.float64)}
    part = path.with_name(path.name + ".part")
    with open(part, "wb") as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)
    part.replace(path)


def load(path: str | Path) -> Model:
    """A model file, or the model of a run folder.

    Raises InputError where there is none, or where the file is no model of this format.
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
            arrays = {name: file[name] for name in file.files if name != "header"}
        if header.get("format") != FORMAT:
            raise InputError(f"{path}: model format {header.get('format')}, this version reads format {FORMAT}")
        return _made(header, arrays)
    except InputError:
        raise
    except Exception as error:  # a damaged archive raises many kinds
        raise InputError(f"{path}: not a model file of jaxal ({type(error).__name__})") from error


def _made(header: dict[str, Any], arrays: dict[str, np.ndarray]) -> Model:
    """The model of a file's contents."""
    reference = arrays.pop("reference")
    params: dict[str, Any] = {}
    for name, array in arrays.items():
        *parents, leaf = name.split("/")
        node = params
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = array
    return Model(
        options=tuple(header["options"].items()),
        uncertainty_options=tuple(header["uncertainty_options"].items()),
        table=tuple(header["table"]),
        params=params,
        reference=reference,
        factor=float("inf") if header["factor"] is None else header["factor"],
        **{name: header[name] for name in FIELDS},
    )


def predictor(model: Model, batching: Batching = "auto") -> Callable[[Structure], Prediction]:
    """The committee as a host function: structures [b] in, Prediction [b m ...] out, without the reference energies.

    Neighbor capacities are found as needed and kept, so like structures compile once.
    """
    part = committee(model, batching)
    double = model.precision == "float64"
    with jax.enable_x64(double):
        params = jax.tree.map(jnp.asarray, model.params)
    specs: dict[tuple[int, bool], neighbors.Spec] = {}

    def run(spec: neighbors.Spec, params: Params, structures: Structure):
        near = jax.vmap(lambda s: neighbors.build(spec, s))(structures)
        return predict(part, params, structures, near), jnp.any(near.overflow)

    compiled = jax.jit(run, static_argnums=0)

    def predicted(structures: Structure) -> Prediction:
        with jax.enable_x64(double):
            return evaluate(structures)

    def evaluate(structures: Structure) -> Prediction:
        structures = jax.tree.map(jnp.asarray, structures)
        kind = (structures.species.shape[-1], bool(np.any(np.asarray(structures.cell))))
        if kind not in specs:
            specs[kind] = neighbors.plan(structures, part.potential.cutoff, 0.0, 1.25)
        prediction, overflow = compiled(specs[kind], params, structures)
        if overflow:
            specs[kind] = neighbors.larger(specs[kind], structures)
            prediction, _ = compiled(specs[kind], params, structures)
        return prediction

    return predicted
