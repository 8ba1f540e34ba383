"""The biases of a configuration, for the structures that walkers start from."""

from collections.abc import Sequence

import ase

from jaxal.config.schema import Bias
from jaxal.core.errors import InputError
from jaxal.core.types import Score
from jaxal.data import lattice
from jaxal.explore import variables
from jaxal.explore.bias_forces import Term, Terms


def terms_of(biases: Sequence[Bias], score: Score, start: ase.Atoms, field: str = "bias") -> Terms:
    """The biases as terms that act together, on structures of the same atoms as `start`.

    Raises InputError, with the option below `field`, for options and variables that do not fit.
    """
    terms: list[Term] = []
    taken: set[str] = set()
    for row, bias in enumerate(biases):
        place = field if len(biases) == 1 else f"{field}[{row}]"
        choices = [(part.name, dict(part.options)) for part in bias.variables]
        along = variables.bound(choices, start, f"{place}.variables")
        try:
            acting = bias.part.bind()(score, along)
        except InputError as error:
            raise InputError(f"{place}.{error}") from None
        if acting.open and start.pbc.any():
            what = f"the structure is periodic along {lattice.named(start.pbc)}"
            raise InputError(f"{place}.name: {bias.part.name} is for open structures, {what}; give a wall on variables")
        labels = tuple(_unique(name, taken) for name in along.names)
        terms.append(Term(_unique(bias.part.name, taken), acting, along, labels))
    return tuple(terms)


def _unique(name: str, taken: set[str]) -> str:
    """The name, with a number where it is taken."""
    numbered = (f"{name}_{number}" for number in range(2, len(taken) + 3))
    free = next(each for each in (name, *numbered) if each not in taken)
    taken.add(free)
    return free
