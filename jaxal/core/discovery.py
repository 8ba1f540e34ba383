"""Every module that registers a part, of jaxal and of what is plugged in (see `plugins`)."""

import functools
import importlib
import re
from importlib.resources import files
from pathlib import Path

from jaxal.core import plugins, registry

# where parts are
ROOMS = ("potential", "acquire", "uncertainty", "explore", "label/methods", "label/workers", "simulate")
REGISTERS = re.compile(r'^@register\("(\w+)"', re.MULTILINE)
NEEDED = {"schedule": ("select",)}  # kinds whose parts name parts of others


@functools.cache
def modules() -> dict[str, tuple[str, ...]]:
    """Names of jaxal's own modules that register parts, by kind: by their sources, so that none is imported.

    Explorers take seconds, which a training need not wait for.
    """
    of_kind: dict[str, list[str]] = {kind: [] for kind in registry.KINDS}
    for room in ROOMS:
        for file in sorted(files("jaxal").joinpath(room).iterdir(), key=lambda file: file.name):
            if file.name.endswith(".py"):
                for kind in set(REGISTERS.findall(file.read_text(encoding="utf-8"))):
                    of_kind[kind].append(f"jaxal.{room.replace('/', '.')}.{file.name.removesuffix('.py')}")
    return {kind: tuple(names) for kind, names in of_kind.items()}


def import_parts(*kinds: str) -> None:
    """Imports the modules that register parts of these kinds, by default of all, and what packages offer.

    The tables of the registry are full then. Raises InputError for a package whose parts cannot be imported.
    """
    import_own(*kinds)
    _import_packages()


def import_own(*kinds: str) -> None:
    """Imports jaxal's own modules that register parts of these kinds, by default of all."""
    for kind in kinds or registry.KINDS:
        for needed in (kind, *NEEDED.get(kind, ())):
            _import_kind(needed)


@functools.cache
def _import_kind(kind: str) -> None:
    for module in modules()[kind]:
        importlib.import_module(module)


@functools.cache
def _import_packages() -> None:
    plugins.import_packages()


registry.imported_by(import_parts)  # where a default is used that no configuration names


def import_file(path: str | Path) -> None:
    """Imports a Python file that registers parts, after all others: it may not take a name that there is.

    Raises InputError where it is missing or cannot be imported.
    """
    import_parts()
    plugins.import_file(path)
