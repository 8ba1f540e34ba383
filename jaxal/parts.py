"""Every module that registers a part, of jaxal and of what is plugged in (see `plugins`)."""

import functools
import importlib
from pathlib import Path

from jaxal import plugins
from jaxal.uncertainty import METHODS

LABELERS = "tblite pyscf ase command xtb espresso nwchem cp2k abinit gpaw psi4 orca gaussian vasp teacher"
MODULES = (
    "jaxal.potential.equivariant",
    "jaxal.potential.pair",
    "jaxal.explore.md",
    "jaxal.explore.bias",
    "jaxal.explore.seek",
    "jaxal.explore.descent",
    *(f"jaxal.uncertainty.{name}" for name in METHODS),
    "jaxal.uncertainty.calibrate",
    "jaxal.acquire.score",
    "jaxal.acquire.improvement",
    "jaxal.acquire.environments",
    "jaxal.acquire.gate",
    "jaxal.acquire.kernel",
    "jaxal.acquire.kernel_soap",
    "jaxal.acquire.select",
    "jaxal.acquire.select_distance",
    "jaxal.acquire.select_gaussian",
    "jaxal.acquire.schedule",
    *(f"jaxal.label.{name}" for name in f"{LABELERS} pool cluster".split()),
)


@functools.cache
def import_parts() -> None:
    """Imports every module that registers parts, so that the tables of the registry are full.

    Raises InputError for a package whose parts cannot be imported.
    """
    for module in MODULES:
        importlib.import_module(module)
    plugins.import_packages()


def import_file(path: str | Path) -> None:
    """Imports a Python file that registers parts, after all others: it may not take a name that there is.

    Raises InputError where it is missing or cannot be imported.
    """
    import_parts()
    plugins.import_file(path)
