"""Configurations: YAML in, checked frozen dataclasses out, before anything is computed.

The fields are those of `jaxal.config.schema`; in the section of a part they are joined by the options of the part
that `name` chooses, which are the keyword-only parameters of its registered function. A physical value is a
number in the field's unit or text with its own, `timestep: 0.5` or `timestep: 0.5 fs`. Every mistake raises
InputError, one line with the dotted name of the field and what would be right.
"""

import dataclasses
import difflib
import inspect
import math
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, Union, get_args, get_origin, get_type_hints

from jaxal.config import yaml12
from jaxal.config.annotations import describe, has_fields, kinds_of
from jaxal.config.schema import Config, ExplorerPart, Kinds, Part
from jaxal.core import plugins, registry
from jaxal.core.discovery import import_parts
from jaxal.core.types import InputError
from jaxal.core.units import SYMBOLS, Below, Unit, amount, to_unit

LARGEST = 2**63  # a whole number beyond has no place in any program
PARTIAL = "config.yaml.partial"
FILE_NAME = "config.yaml"  # of the resolved configuration in a run folder
INPUTS = "inputs"  # folder of a run folder that holds the files its configuration names
T = TypeVar("T")


class Files(NamedTuple):
    """Where the files of a configuration are looked for."""

    folder: Path
    typed: tuple[str, ...]  # fields of the command line, whose files may also be relative to the working directory

    def bases(self, field: str) -> list[Path]:
        """The folders that a path may be relative to."""
        typed = any(field == key or field.startswith((f"{key}.", f"{key}[")) for key in self.typed)
        return [self.folder, Path()] if typed else [self.folder]


def load(path: str | Path, overrides: Sequence[str] = (), cls: type[T] = Config) -> T:
    """The configuration in a YAML file, checked, with every default filled in.

    Parameters
    ----------
    path
        The YAML file. Files it names are relative to its folder.
    overrides
        Each `key.sub=value`, the value in YAML; they replace what the file says. Files are looked for in the working
        directory, too.
    cls
        `schema.Config` for `jaxal run`, `schema.Offline` for `jaxal train`.

    Raises
    ------
    InputError
        File and field (or the override), what is wrong, what would be right.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (FileNotFoundError, IsADirectoryError):
        raise InputError(f"{path}: there is no such file; give the path of a YAML configuration") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not a text file in UTF-8 (byte {error.start}); give a YAML configuration") from None
    raw = yaml12.parse(text, str(path))
    if not isinstance(raw, Mapping | None):
        raise InputError(f"{path}: holds no sections; give `section: {{field: value}}` for each")
    raw = dict(raw or {})
    try:
        return parse(raw, path.parent, cls, overrides)
    except InputError as error:
        reason = str(error) if str(error).startswith("override ") else f"{path}: {error}"
        kept = plugins.kept(path.parent / INPUTS) if path.name == FILE_NAME else []
        if kept and ".name: unknown " in reason:
            reason += f"; parts of its own are in the run folder: {' '.join(f'--part {file}' for file in kept)}"
        raise InputError(reason) from None


def parse(
    raw: Mapping[str, Any], folder: str | Path | None = ".", cls: type[T] = Config, overrides: Sequence[str] = ()
) -> T:
    """A configuration from nested mappings, as YAML gives them; files are relative to `folder`.

    Where `folder` is None they are on another host and not looked for.

    Raises InputError, as `load` does.
    """
    for override in overrides:
        raw = _override(dict(raw), override)
    try:
        typed = tuple(override.partition("=")[0].strip() for override in overrides)
        return _section(_inherited(raw), cls, "", None if folder is None else Files(Path(folder), typed))
    except InputError as error:
        for override in reversed(overrides):
            key = override.partition("=")[0].strip()
            if str(error).startswith((f"{key}:", f"{key}.", f"{key}[")):
                raise InputError(f"override {override!r}: {error}") from None
        raise


def _override(raw: dict[str, Any], override: str) -> dict[str, Any]:
    """`raw` with one `key.sub=value` applied."""
    key, equals, text = override.partition("=")
    names = key.strip().split(".")
    if not equals or not all(names):
        raise InputError(f"override {override!r}: give key.sub=value, such as explore.walkers=4")
    value = yaml12.parse(text, f"override {override!r}")

    def replaced(inner: Any, names: list[str], prefix: str) -> Any:
        if not names:
            return value
        if not isinstance(inner, Mapping | None):
            raise InputError(f"override {override!r}: {prefix} is {yaml12.inline(inner)}, which has no fields")
        here = dict(inner or {})
        here[names[0]] = replaced(here.get(names[0]), names[1:], dotted(prefix, names[0]))
        return here

    return replaced(raw, names, "")


def _inherited(raw: Mapping[str, Any]) -> Mapping[str, Any]:
    """`raw` with what a system's own dynamics leaves out from `explore`, where both are of one name."""
    common, systems = raw.get("explore"), raw.get("systems")
    if not isinstance(systems, Mapping) or not isinstance(common, Mapping):
        return raw
    usual = {key: value for key, value in common.items() if key not in ("walkers", "drive")}
    kinds = kinds_of(ExplorerPart)
    assert kinds is not None
    name = usual.get("name", kinds.default)

    def whole(system: Any) -> Any:
        own = system.get("explore") if isinstance(system, Mapping) else None
        if not isinstance(own, Mapping) or own.get("name", name) != name:
            return system
        return {**system, "explore": {**usual, **own}}

    return {**raw, "systems": {name: whole(system) for name, system in systems.items()}}


def _section(raw: Any, cls: type[T], field: str, files: Files | None) -> T:
    """`raw` as the dataclass `cls`; `field` is its dotted name, empty for the whole configuration."""
    raw = _mapping(raw, field)
    hints = get_type_hints(cls, include_extras=True)
    part = kinds_of(hints.get("part"))
    declared = {f.name: f for f in dataclasses.fields(cls) if f.name != "part"}  # pyright: ignore[reportArgumentType]
    rest = {key: value for key, value in raw.items() if key not in declared}
    if rest and not part:
        key = next(iter(rest))
        raise InputError(f"{dotted(field, key)}: unknown field; {_closest(key, list(declared))}")
    values: dict[str, Any] = {"part": _part(rest, part, field, files, tuple(declared))} if part else {}
    for name, each in declared.items():
        place, annotation = dotted(field, name), hints[name]
        if kinds := kinds_of(annotation):
            values[name] = _part(_mapping(raw.get(name), place), kinds, place, files)
        elif dataclasses.is_dataclass(annotation):
            values[name] = _section(raw.get(name), annotation, place, files)  # pyright: ignore[reportArgumentType]
        elif (inner := _optional(annotation)) is not None and raw.get(name) is not None:
            values[name] = _convert(raw[name], inner, place, files)
        elif name in raw:
            values[name] = _convert(raw[name], annotation, place, files)
        elif each.default is dataclasses.MISSING and each.default_factory is dataclasses.MISSING:
            raise InputError(f"{place}: missing; give {describe(annotation)}")
    return cls(**values)


def _part(raw: Mapping[str, Any], kinds: Kinds, field: str, files: Files | None, beside: Sequence[str] = ()) -> Part:
    """The part that `raw["name"]` chooses with the options in `raw`; `beside` are the section's own fields."""
    import_parts(*kinds.kinds)  # takes seconds the first time: a mistake in the sections before is told at once
    name = raw.get("name", kinds.default)
    if not name and "name" not in raw:
        known = sorted(name for kind in kinds.kinds for name in registry.names(kind))
        raise InputError(f"{field}.name: missing; there are {', '.join(known)}")
    kind_of = {known: kind for kind in reversed(kinds.kinds) for known in registry.names(kind)}
    if not isinstance(name, str) or name not in kind_of:
        near = difflib.get_close_matches(str(name), kind_of, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        what = " or ".join(kinds.kinds)
        raise InputError(f"{field}.name: unknown {what} {name!r}; {hint}There are {', '.join(sorted(kind_of))}")
    options = {option.name: option for option in registry.options(kind_of[name], name)}
    for key in raw:
        if key != "name" and key not in options:
            raise InputError(f"{field}.{key}: unknown field; {_closest(key, ['name', *beside, *options])}")
    values = []
    for option in options.values():
        place = f"{field}.{option.name}"
        if option.name in raw:
            values.append((option.name, _convert(raw[option.name], option.annotation, place, files)))
        elif option.default is inspect.Parameter.empty:
            raise InputError(f"{place}: missing; {name} needs {describe(option.annotation)}")
        else:
            values.append((option.name, option.default))
    return Part(kind_of[name], name, tuple(values))


def _convert(value: Any, annotation: Any, field: str, files: Files | None) -> Any:
    """`value` as the annotation wants it. Raises InputError that names the field and what would be right."""
    notes: tuple = ()
    whole_annotation = annotation
    if get_origin(annotation) is Annotated:
        annotation, *rest = get_args(annotation)
        notes = tuple(rest)
    if kinds := kinds_of(whole_annotation):
        return _part(_mapping(value, field), kinds, field, files)
    if dataclasses.is_dataclass(annotation):
        return _section(value, annotation, field, files)  # pyright: ignore[reportArgumentType]
    origin, arguments = get_origin(annotation), get_args(annotation)
    wrong = InputError(f"{field}: {yaml12.inline(value)} does not fit; give {describe(whole_annotation)}")
    if annotation in (Any, inspect.Parameter.empty):
        return value
    if origin in (Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        choices = [Annotated[(choice, *notes)] if notes else choice for choice in arguments if choice is not type(None)]
        for choice in choices[:-1]:
            try:
                return _convert(value, choice, field, files)
            except InputError:
                continue
        try:
            return _convert(value, choices[-1], field, files)
        except InputError as error:  # its complaint stands for all, but what would be right is any of them
            own = str(error).startswith(f"{field}: ") and "does not fit; give" in str(error)
            raise (wrong if own else error) from None
    if origin is Literal:
        if not any(value == choice and type(value) is type(choice) for choice in arguments):
            raise wrong
        return value
    if annotation in (int, float):
        return _number(value, annotation, notes, field, wrong)
    if annotation in (bool, str):
        if not isinstance(value, annotation):
            raise wrong
        return value
    if annotation is Path:
        return _file(value, field, files, wrong)
    kind = origin or annotation
    if issubclass(kind, Mapping):
        if not isinstance(value, Mapping):
            raise wrong
        inner = arguments[1] if arguments else Any
        return {key: _convert(each, inner, f"{field}.{key}", files) for key, each in value.items()}
    if issubclass(kind, Sequence):
        if arguments and has_fields(arguments[0]) and isinstance(value, Mapping | None):  # one, or none
            return () if value is None else (_convert(value, arguments[0], field, files),)
        if not isinstance(value, list | tuple):
            raise wrong
        fixed = kind is tuple and arguments and arguments[-1] is not Ellipsis
        if fixed and len(arguments) != len(value):
            raise InputError(f"{field}: {yaml12.inline(list(value))} does not fit; give a list of {len(arguments)}")
        inner = arguments if fixed else [arguments[0] if arguments else Any] * len(value)
        each = enumerate(zip(value, inner, strict=True))
        return tuple(_convert(item, expected, f"{field}[{i}]", files) for i, (item, expected) in each)
    raise TypeError(f"{field}: a configuration has no rule for {annotation}")  # a mistake of the part's author


def _number(value: Any, kind: type, notes: Sequence[Any], field: str, wrong: InputError) -> int | float:
    """A finite number within its bounds, text with a unit converted."""
    unit = next((note for note in notes if isinstance(note, Unit)), Unit(""))
    if isinstance(value, str) and kind is float and unit.symbol:
        number, symbol = amount(value) or (None, "")
        if number is not None and symbol == unit.symbol:
            value = number
        elif number is not None and unit.symbol in SYMBOLS:
            try:
                value = to_unit(number, symbol, unit.symbol)
            except ValueError as error:
                raise InputError(f"{field}: {value!r} does not fit: {error}") from None
    expected = int if kind is int else int | float
    if isinstance(value, bool) or not isinstance(value, expected):
        raise wrong
    if (isinstance(value, int) and abs(value) >= LARGEST) or not math.isfinite(value):
        raise wrong
    if unit.minimum is not None and (value < unit.minimum or (unit.exclusive and value == unit.minimum)):
        bound = f"more than {unit.minimum:g}" if unit.exclusive else f"at least {unit.minimum:g}"
        raise InputError(f"{field}: {value} is too small; give {bound} {unit.symbol}".rstrip())
    for note in notes:
        if isinstance(note, Below) and value >= note.maximum:
            raise InputError(f"{field}: {value} is too large; give less than {note.maximum:g}")
    return kind(value)


def _file(value: Any, field: str, files: Files | None, wrong: InputError) -> Path:
    if not isinstance(value, str):
        raise wrong
    if files is None:
        return Path(value)
    try:
        bases = files.bases(field)
        paths = list(dict.fromkeys((base / Path(value).expanduser()).resolve() for base in bases))
        there = [path for path in paths if path.is_file()]
    except (OSError, RuntimeError) as error:  # a name that is too long, the home of a user that there is not
        raise InputError(f"{field}: {str(value)[:80]} is no path ({getattr(error, 'strerror', error)})") from None
    if not there:
        which, what = " nor ".join(map(str, paths)), " or to the working directory" if len(paths) > 1 else ""
        raise InputError(f"{field}: there is no file {which}; paths are relative to the configuration's folder{what}")
    if len(there) > 1:
        raise InputError(f"{field}: there are {there[0]} and {there[1]}; give the whole path of one of them")
    return there[0]


def _mapping(raw: Any, field: str) -> Mapping[str, Any]:
    if not isinstance(raw, Mapping | None):
        raise InputError(f"{field}: {yaml12.inline(raw)} does not fit; give fields, {{name: value, ...}}")
    return raw or {}


def _optional(annotation: Any) -> Any:
    """The section or part, or the several, of a field that may be left out; None for any other."""
    choices = [choice for choice in get_args(annotation) if choice is not type(None)]
    if get_origin(annotation) not in (Union, types.UnionType) or len(choices) != 1:
        return None
    several = get_origin(choices[0]) is tuple and has_fields(get_args(choices[0])[0])
    return choices[0] if has_fields(choices[0]) or several else None


def _closest(name: Any, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(str(name), known, n=1)
    return f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"


def dotted(*names: Any) -> str:
    """A field's name from its section's and its own."""
    return ".".join(str(name) for name in names if name != "")
