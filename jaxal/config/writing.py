"""Configurations written: as YAML with every default, and into run folders with the files they name."""

import dataclasses
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from jaxal.config import yaml12
from jaxal.config.annotations import unit_of
from jaxal.config.loading import FILE_NAME, INPUTS, PARTIAL, dotted
from jaxal.config.schema import Part
from jaxal.core import plugins, registry

T = TypeVar("T")


def dump(config: Any, folder: str | Path | None = None) -> str:
    """A configuration as YAML, every field with its unit; it loads back to an equal configuration.

    Paths inside `folder` are written relative to it, all others absolute.
    """
    lines = []
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.name in ("system", "systems") and not value:
            continue
        lines += _named(field.name, value, folder)
    return "\n".join(lines) + "\n"


def resolved(config: T, directory: str | Path) -> T:
    """Writes `config.yaml` and copies of the files it names into `directory`, which then needs nothing else.

    With them go the files that parts were imported from.

    Returns the configuration that names the copies; it equals what `load` reads from the new file.
    """
    directory = Path(directory).resolve()
    directory.mkdir(parents=True, exist_ok=True)
    config = _copied(config, "", directory)
    plugins.keep(directory / INPUTS)
    partial = directory / PARTIAL  # a run folder is one from the moment its configuration is there, whole
    partial.write_text(dump(config, directory), encoding="utf-8")
    partial.replace(directory / FILE_NAME)
    return config


def _lines(section: Any, folder: str | Path | None) -> Iterator[str]:
    """The lines of one section or part, with units as comments."""
    if isinstance(section, Part):
        yield f"name: {yaml12.inline(section.name)}"
        annotations = {option.name: option.annotation for option in registry.options(section.kind, section.name)}
        items: Sequence[tuple[str, Any]] = section.options
    else:
        annotations = get_type_hints(type(section), include_extras=True)
        items = [(field.name, getattr(section, field.name)) for field in dataclasses.fields(section)]
    for name, value in items:
        if isinstance(value, Part) and name == "part":
            yield from _lines(value, folder)
            continue
        yield from _named(name, value, folder, unit_of(annotations[name]))


def _named(name: str, value: Any, folder: str | Path | None, unit: str = "") -> Iterator[str]:
    """The lines of a field: a section, several of them, or a value."""
    sections = value if isinstance(value, tuple) and any(map(_is_section, value)) else ()
    if _is_section(value):
        yield f"{name}:"
        yield from (f"  {line}" for line in _lines(value, folder))
    elif isinstance(value, Mapping) and value and all(map(_is_section, value.values())):
        yield f"{name}:"
        for key, section in value.items():
            yield f"  {yaml12.inline(key)}:"
            yield from (f"    {line}" for line in _lines(section, folder))
    elif sections and name != "variables":  # those are shorter on a line
        yield f"{name}:"
        for each in sections:
            yield from (f"{'-' if row == 0 else ' '} {line}" for row, line in enumerate(_lines(each, folder)))
    else:
        yield f"{name}: {yaml12.inline(_plain(value, folder))}" + (f"  # {unit}" if unit else "")


def _is_section(value: Any) -> bool:
    return isinstance(value, Part) or (dataclasses.is_dataclass(value) and not isinstance(value, type))


def _plain(value: Any, folder: str | Path | None) -> Any:
    """A value as YAML knows it."""
    if isinstance(value, Path):
        inside = folder is not None and value.is_relative_to(Path(folder).resolve())
        return value.relative_to(Path(folder).resolve()).as_posix() if folder and inside else str(value)
    if isinstance(value, tuple | list):
        return [_plain(each, folder) for each in value]
    if isinstance(value, Part):
        return {"name": value.name} | {name: _plain(each, folder) for name, each in value.options}
    if isinstance(value, Mapping):
        return {key: _plain(each, folder) for key, each in value.items()}
    return value


def _copied(value: Any, field: str, directory: Path) -> Any:
    """`value` with every path replaced by a copy under `directory`; `field` names the copy's own folder."""
    if isinstance(value, Path):
        target = directory / INPUTS / field / value.name
        if value != target:
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(value, target)
        return target
    if isinstance(value, tuple):
        return tuple(_copied(each, f"{field}.{i}", directory) for i, each in enumerate(value))
    if isinstance(value, Mapping):
        return {key: _copied(each, f"{field}.{key}", directory) for key, each in value.items()}
    if isinstance(value, Part):
        options = ((name, _copied(each, dotted(field, name), directory)) for name, each in value.options)
        return dataclasses.replace(value, options=tuple(options))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = [each.name for each in dataclasses.fields(value)]
        return dataclasses.replace(
            value, **{name: _copied(getattr(value, name), dotted(field, name), directory) for name in names}
        )
    return value
