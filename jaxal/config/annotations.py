"""What the annotation of a field says: what it takes, in words, its unit, and whether it holds fields of its own."""

import dataclasses
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from jaxal.config.schema import Kinds
from jaxal.core.units import Unit


def describe(annotation: Any) -> str:
    """What a field takes, in words: `a number in fs`, `true or false`, `adamw or amsgrad`."""
    notes: tuple = ()
    if get_origin(annotation) is Annotated:
        annotation, *rest = get_args(annotation)
        notes = tuple(rest)
    origin, arguments = get_origin(annotation), get_args(annotation)
    symbol = next((f" in {note.symbol}" for note in notes if isinstance(note, Unit) and note.symbol), "")
    if origin in (Union, types.UnionType):
        return " or ".join("null" if choice is type(None) else describe(choice) + symbol for choice in arguments)
    if origin is Literal:
        return " or ".join(map(str, arguments))
    words = {int: "a whole number", float: "a number" + symbol, bool: "true or false", str: "text", Path: "a file"}
    if annotation in words:
        return words[annotation]
    kind = origin or annotation
    if kind is tuple and arguments and has_fields(arguments[0]):
        return "fields, {name: value, ...}, or a list of such"
    if isinstance(kind, type) and issubclass(kind, Mapping):
        return "a mapping"
    return "a list" if isinstance(kind, type) and issubclass(kind, Sequence) else "a value"


def unit_of(annotation: Any) -> str:
    """The unit of an annotated field, empty where it has none."""
    if get_origin(annotation) is Annotated:
        symbol = next((note.symbol for note in get_args(annotation) if isinstance(note, Unit)), "")
        return symbol or unit_of(get_args(annotation)[0])
    return next((unit for unit in map(unit_of, get_args(annotation)) if unit), "")


def kinds_of(annotation: Any) -> Kinds | None:
    """The kinds of a field that holds a part, None for any other."""
    notes = get_args(annotation) if get_origin(annotation) is Annotated else ()
    return next((note for note in notes if isinstance(note, Kinds)), None)


def has_fields(annotation: Any) -> bool:
    """Whether a value of it is a section or a part."""
    return kinds_of(annotation) is not None or dataclasses.is_dataclass(annotation)
