"""One step of dynamics, whatever asks for it: the program, validation and benchmarks take their steps here."""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
from jaxtyping import Array, Float

from jaxal.core.types import Explorer, Neighbors, Structure, WalkerState
from jaxal.data import neighbors

S = TypeVar("S")


class Moves(NamedTuple):
    """What moves walkers [w]."""

    force: Float[Array, "w n 3"]  # eV/Å
    stress: Float[Array, "w 3 3"]  # eV/Å^3


class Step(NamedTuple):
    """Where walkers [w] have come by one step."""

    walkers: WalkerState
    near: Neighbors  # with their skin, for the next step
    close: Neighbors  # within the cutoff; `overflow` says where there was no room
    seen: Any  # what `push` said beside


def step(
    explorer: Explorer,
    spec: neighbors.Spec,
    walkers: WalkerState,
    near: Neighbors,
    push: Callable[[Structure, Neighbors], tuple[Moves, S]],
) -> Step:
    """Proposes, finds the neighbors, takes from `push` what moves the walkers and what else it says, and advances.

    Neighbors are searched anew, for all walkers, where one has outrun its skin.
    """
    proposed = jax.vmap(explorer.propose)(walkers)
    with jax.named_scope("neighbors"):
        near = neighbors.renewed(spec, near, proposed)
        close = neighbors.within(spec, near, proposed)
    moves, seen = push(proposed, close)
    return Step(jax.vmap(explorer.advance)(walkers, proposed, *moves), near, close, seen)
