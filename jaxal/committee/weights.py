"""Parameters of any pytree as collections: what is trained, and what is not.

Everywhere but inside a potential its parameters are a dictionary of collections. "params" holds what is trained, a
dictionary of arrays of floating point; every other collection, such as "constants" or a method's "posterior", is left
by training as it is. That is what flax gives, and such parameters are taken as they are. Any other pytree of numbers
(lists, tuples, NamedTuples, dictionaries of any keys, None, single numbers) is brought into that form: its leaves of
floating point are trained, the others, such as whole numbers, are not. The potential itself sees its own tree again.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxal.committee.isolated_atoms import ISOLATED
from jaxal.core.types import InputError, Key, Neighbors, Params, Potential, Structure

TRAINED, CONSTANTS = "params", "constants"  # a mapping with one of these holds collections
TREE = "tree"  # in "params": the trained leaves of a tree that is no dictionary of them
REST = "untrained"  # collection of the leaves of "params" that are not trained
WHOLE = "whole"  # collection of the leaves that are not trained, of a tree without collections
RESERVED = ("posterior", ISOLATED, REST, WHOLE)  # names that a potential's own collections cannot have


def collected(potential: Potential) -> Potential:
    """The potential with its parameters as collections.

    `init` raises InputError for parameters that cannot be trained or kept: without a number to train, with complex
    numbers, random keys or anything that is no array, or with a collection of a name that is taken.
    """
    energies_of, alone_of, isolation_of = potential.energies, potential.alone, potential.isolation

    def init(key: Key, structure: Structure, neighbors: Neighbors) -> Params:
        own = potential.init(key, structure, neighbors)
        if _are_collections(own) and (taken := [name for name in RESERVED if name in own]):
            raise InputError(f"potential: its collection {taken[0]!r} has a name that is taken; give it another")
        params = collections(jax.tree_util.tree_map_with_path(_array, own))
        if not jax.tree.leaves(params[TRAINED]):
            raise InputError(
                "potential: its parameters hold no number of floating point to train; a closed form is an oracle, for "
                "label.name"
            )
        return params

    def energy(params: Params, structure: Structure, neighbors: Neighbors) -> Any:
        return potential.energy(own_tree(params), structure, neighbors)

    def energies(params: Params, structures: Structure, neighbors: Neighbors) -> Any:
        assert energies_of is not None
        return energies_of(own_tree(params), structures, neighbors)

    def alone(params: Params) -> Any:
        assert alone_of is not None
        return alone_of(own_tree(params))

    def isolation(params: Params, structures: Structure, neighbors: Neighbors) -> Any:
        assert isolation_of is not None
        return isolation_of(own_tree(params), structures, neighbors)

    batch = None if energies_of is None else energies
    extra = None if alone_of is None else alone, None if isolation_of is None else isolation
    return Potential(init, energy, potential.cutoff, batch, *extra)


def collections(own: Params) -> Params:
    """A potential's own tree as collections; collections as they are."""
    if not _are_collections(own):
        trained, rest = _apart(own)
        return {TRAINED: {TREE: trained}, WHOLE: rest}
    others = {name: own[name] for name in own if name != TRAINED}
    inner = own.get(TRAINED, {})
    if type(inner) is dict and all(_is_trained(leaf) for leaf in jax.tree.leaves(inner)):
        return {**others, TRAINED: inner}
    trained, rest = _apart(inner)
    return {**others, TRAINED: {TREE: trained}, REST: rest}


def own_tree(params: Params) -> Params:
    """The tree of a potential, from what `collections` made of it; anything else as it is."""
    if not _are_collections(params):
        return params
    if WHOLE in params:
        return _together(params[TRAINED][TREE], params[WHOLE])
    if REST in params:
        others = {name: value for name, value in params.items() if name not in (TRAINED, REST)}
        return {**others, TRAINED: _together(params[TRAINED][TREE], params[REST])}
    return params


def _are_collections(tree: Any) -> bool:
    return isinstance(tree, Mapping) and (TRAINED in tree or CONSTANTS in tree)


def _is_trained(leaf: Any) -> bool:
    return bool(jnp.issubdtype(jnp.result_type(leaf), jnp.floating))


def _apart(tree: Any) -> tuple[Any, Any]:
    """The tree with None for what is not trained, and with None for what is."""
    trained = jax.tree.map(lambda leaf: leaf if _is_trained(leaf) else None, tree)
    return trained, jax.tree.map(lambda leaf: None if _is_trained(leaf) else leaf, tree)


def _together(trained: Any, rest: Any) -> Any:
    return jax.tree.map(lambda leaf, other: other if leaf is None else leaf, trained, rest, is_leaf=lambda x: x is None)


def _array(path: Any, leaf: Any) -> Any:
    """A leaf as an array of a type of its own. Raises InputError for what cannot be trained or kept."""
    name = jax.tree_util.keystr(path) or "their only leaf"
    try:
        kind = jnp.result_type(leaf)
        if not jnp.issubdtype(kind, jnp.complexfloating) and not jnp.issubdtype(kind, jax.dtypes.extended):
            return jnp.asarray(leaf, kind)  # named, the type of a Python number is no longer weak
        what = f"is of type {kind}"
    except (TypeError, ValueError, OverflowError):
        what = f"is {type(leaf).__name__} {str(leaf)[:30]!r}"
    right = "give arrays of real or whole numbers (of a random key its data, of a complex number its two parts)"
    raise InputError(f"potential: {name} of its parameters {what}; {right}")
