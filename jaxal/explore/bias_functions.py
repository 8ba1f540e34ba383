"""Functions that biases are made of: of those that remember nothing, and of those that learn every so many steps."""

from collections.abc import Callable
from typing import Annotated, Any, TypeVar

import jax
from jaxtyping import Array, Float, Int

from jaxal.core.types import Moment, Structure
from jaxal.core.units import Unit

S = TypeVar("S")
Largest = Annotated[float, Unit("eV/Å", 0.0, exclusive=True)] | None


def nothing(structure: Structure, walker: Int[Array, ""]) -> tuple[()]:
    """The state of a bias that learns nothing."""
    del structure, walker
    return ()


def as_before(state: Any, moment: Moment) -> Any:
    """The state, whatever it is told."""
    del moment
    return state


def at_pace(pace: int, deposited: Callable[[S, Moment], S]) -> Callable[[S, Moment], S]:
    """What learns by `deposited` at every `pace`-th step; its state counts them, `steps`."""

    def learn(state: Any, moment: Moment) -> Any:
        state = state._replace(steps=state.steps + 1)
        return jax.lax.cond(state.steps % pace == 0, deposited, as_before, state, moment)

    return learn


def of_variables(energy: Callable[[Any, Float[Array, "v"]], Float[Array, ""]]) -> Callable[..., Float[Array, ""]]:
    """The energy of a bias that is one of its state and its variables alone."""

    def of_all(state: Any, values: Float[Array, "v"], uncertainty: Any, structure: Any, time: Any) -> Float[Array, ""]:
        del uncertainty, structure, time
        return energy(state, values)

    return of_all
