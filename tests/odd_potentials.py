"""Potentials whose parameters are pytrees of many kinds: the same springs to the center, with other containers."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxal.core.types import Potential


class Springs(NamedTuple):
    """Parameters in a container of their own."""

    stiffness: Any  # eV/Å^2
    power: Any = None


@jax.tree_util.register_dataclass
@dataclass
class Held:
    """Parameters in a class that JAX knows."""

    stiffness: Any


def scalar() -> jax.Array:
    return jnp.asarray(1.5)


# name -> (parameters, how the stiffness is found in them)
TREES: dict[str, tuple[Any, Any]] = {
    "array": (scalar, lambda p: p),
    "number": (lambda: 1.5, lambda p: p),
    "list": (lambda: [scalar(), jnp.ones(2)], lambda p: p[0] + 0 * p[1][0]),
    "tuple": (lambda: (jnp.ones(3), (scalar(),)), lambda p: p[1][0]),
    "named": (lambda: Springs(scalar(), jnp.asarray(2)), lambda p: p.stiffness + 0 * p.power),
    "nothing": (lambda: {"a": None, "b": [None, scalar()]}, lambda p: p["b"][1]),
    "slashes": (lambda: {"a/b": scalar(), "a": {"b": jnp.asarray(3.0)}}, lambda p: p["a/b"]),
    "keys": (lambda: {1: scalar(), 2: {(3, 4): jnp.ones(())}}, lambda p: p[1]),
    "whole": (lambda: {"params": {"k": scalar(), "rows": jnp.arange(4)}}, lambda p: p["params"]["k"]),
    "collections": (lambda: {"params": Springs(scalar()), "constants": 2.0}, lambda p: p["params"].stiffness),
    "flax": (lambda: {"params": {"k": scalar()}, "constants": {"scale": scalar()}}, lambda p: p["params"]["k"]),
    "types": (lambda: {"k": scalar().astype(jnp.bfloat16), "flag": jnp.asarray(True)}, lambda p: p["k"].astype(float)),
    "registered": (lambda: Held(scalar()), lambda p: p.stiffness),
}  # fmt: skip
REFUSED: dict[str, tuple[Any, str]] = {
    "none": (lambda: {}, "no number of floating point to train"),
    "whole numbers": (lambda: [jnp.arange(3)], "no number of floating point to train"),
    "complex": (lambda: {"z": jnp.ones(2, jnp.complex64)}, r"\['z'\] of its parameters is of type complex64"),
    "key": (lambda: [scalar(), jax.random.key(0)], r"\[1\] of its parameters is of type key"),
    "text": (lambda: (scalar(), "text"), r"\[1\] of its parameters is str 'text'"),
    "function": (lambda: (scalar(), jnp.tanh), r"\[1\] of its parameters is "),
    "name": (lambda: {"params": {"k": scalar()}, "posterior": {}}, "'posterior' has a name that is taken"),
}


def springs(tree: str) -> Potential:
    """Every atom is drawn to the origin, with the stiffness that the tree holds."""
    make, stiffness = TREES[tree] if tree in TREES else (REFUSED[tree][0], None)

    def energy(params, structure, near):
        assert stiffness is not None
        square = jnp.sum(structure.position**2, axis=-1)
        atomic = 0.5 * stiffness(params) * jnp.where(structure.species >= 0, square, 0.0)
        return jnp.sum(atomic), atomic[:, None]

    return Potential(lambda key, structure, near: make(), energy, 3.0)


def odd(table, *, tree: str = "array") -> Potential:
    """Springs to the origin: a test."""
    del table
    return springs(tree)
