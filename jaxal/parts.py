"""Every module that registers a part, of jaxal and of what is plugged in (see `plugins`)."""

import functools
import importlib
from pathlib import Path

from jaxal import plugins, registry
from jaxal.uncertainty import METHODS

LABELERS = "tblite pyscf ase command xtb espresso nwchem cp2k abinit gpaw psi4 orca gaussian vasp teacher"
# kind -> modules that register parts of it, and of no other
MODULES: dict[str, tuple[str, ...]] = {
    "potential": ("jaxal.potential.equivariant",),
    "oracle": ("jaxal.potential.pair",),
    "labeler": tuple(f"jaxal.label.{name}" for name in LABELERS.split()),
    "executor": ("jaxal.label.pool", "jaxal.label.cluster"),
    "explorer": ("jaxal.explore.md", "jaxal.explore.bias", "jaxal.explore.descent"),
    "uncertainty": tuple(f"jaxal.uncertainty.{name}" for name in METHODS),
    "score": ("jaxal.acquire.score", "jaxal.acquire.improvement", "jaxal.acquire.environments"),
    "bias": ("jaxal.explore.seek",),
    "gate": ("jaxal.acquire.gate", "jaxal.uncertainty.calibrate"),
    "kernel": ("jaxal.acquire.kernel", "jaxal.acquire.kernel_soap"),
    "select": ("jaxal.acquire.select", "jaxal.acquire.select_distance", "jaxal.acquire.select_gaussian"),
    "schedule": ("jaxal.acquire.schedule",),
}
NEEDED = {"schedule": ("select",)}  # kinds whose parts name parts of others


def import_parts(*kinds: str) -> None:
    """Imports the modules that register parts of these kinds, by default of all, and what packages offer.

    The tables of the registry are full then. Explorers take seconds, which a training need not wait for.
    Raises InputError for a package whose parts cannot be imported.
    """
    for kind in kinds or registry.KINDS:
        for needed in (kind, *NEEDED.get(kind, ())):
            _import_kind(needed)
    _import_packages()


@functools.cache
def _import_kind(kind: str) -> None:
    for module in MODULES[kind]:
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
