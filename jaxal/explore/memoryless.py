"""What a bias that remembers nothing has for a state."""

from typing import Any

from jaxtyping import Array, Int

from jaxal.core.types import Moment, Structure


def nothing(structure: Structure, walker: Int[Array, ""]) -> tuple[()]:
    """The state of a bias that learns nothing."""
    del structure, walker
    return ()


def as_before(state: Any, moment: Moment) -> Any:
    """The state, whatever it is told."""
    del moment
    return state
