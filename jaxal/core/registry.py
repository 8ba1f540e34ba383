"""One table for each kind of part. Registering a function is all it takes to add a part.

The name of a part is the name of its function, its description the first line of the docstring, its options
the keyword-only parameters. The contract tests and `jaxal list` go over these tables.
"""

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

KINDS = (
    "potential",
    "oracle",
    "labeler",
    "executor",
    "explorer",
    "sampler",
    "uncertainty",
    "score",
    "variable",
    "bias",
    "gate",
    "kernel",
    "select",
    "schedule",
    "task",
)

_table: dict[str, dict[str, Callable]] = {kind: {} for kind in KINDS}
_about: dict[tuple[str, str], Callable[..., Any]] = {}
_importers: list[Callable[[str], Any]] = []
F = TypeVar("F", bound=Callable)


class Option(NamedTuple):
    """One keyword-only parameter of a part. `default` is inspect.Parameter.empty where it must be given."""

    name: str
    annotation: Any
    default: Any


def register(kind: str, about: Callable[..., Any] | None = None) -> Callable[[F], F]:
    """Decorator that enters a function under its own name in the table of `kind`.

    `about` says, for its options, what else is to be known of the part before it is used: of a score its `Measure`.
    Raises ValueError for an unknown kind, a name already taken, or a function without a docstring.
    """
    if kind not in _table:
        raise ValueError(f"register: unknown kind {kind!r}; kinds are {', '.join(KINDS)}")

    def enter(function: F) -> F:
        name = function.__name__
        if name in _table[kind]:
            raise ValueError(f"register: the {kind} {name!r} is already there")
        if not function.__doc__:
            raise ValueError(f"register: the {kind} {name!r} needs a docstring, `jaxal list` shows its first line")
        _table[kind][name] = function
        if about is not None:
            _about[kind, name] = about
        return function

    return enter


def imported_by(importer: Callable[[str], Any]) -> None:
    """Has the parts of a kind imported by this function once they are asked for, see `jaxal.core.discovery`."""
    _importers.append(importer)


def names(kind: str) -> tuple[str, ...]:
    """All registered names of a kind, sorted."""
    for importer in _importers:
        importer(kind)
    return tuple(sorted(_table[kind]))


def get(kind: str, name: str) -> Callable:
    """The registered function. Raises KeyError that names the choices."""
    if name not in _table[kind] and name not in (known := names(kind)):
        raise KeyError(f"unknown {kind} {name!r}; there are {', '.join(known)}")
    return _table[kind][name]


def about(kind: str, name: str, **options: Any) -> Any:
    """What was registered beside the part, for these of its options; None where nothing was."""
    get(kind, name)
    return _about[kind, name](**options) if (kind, name) in _about else None


def description(kind: str, name: str) -> str:
    """First line of the part's docstring."""
    return (inspect.getdoc(get(kind, name)) or "").splitlines()[0]


def options(kind: str, name: str) -> tuple[Option, ...]:
    """Keyword-only parameters of a part, in order, with resolved annotations."""
    signature = inspect.signature(get(kind, name), eval_str=True)
    return tuple(
        Option(p.name, p.annotation, p.default)
        for p in signature.parameters.values()
        if p.kind is inspect.Parameter.KEYWORD_ONLY
    )
