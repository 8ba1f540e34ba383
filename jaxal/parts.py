"""Every module that registers a part, of jaxal and of packages beside it.

A package offers parts with an entry point of the group `jaxal.parts`, whose value is the module that registers them:

    [project.entry-points."jaxal.parts"]
    mine = "my_package.acquisition"
"""

import functools
import importlib
from importlib import metadata

from jaxal.types import InputError

GROUP = "jaxal.parts"
LABELERS = "tblite pyscf ase command xtb espresso nwchem cp2k abinit gpaw psi4 orca gaussian vasp teacher"
MODULES = (
    "jaxal.potential.equivariant",
    "jaxal.potential.pair",
    "jaxal.explore.md",
    "jaxal.explore.bias",
    "jaxal.explore.seek",
    "jaxal.explore.descent",
    "jaxal.uncertainty.members",
    "jaxal.acquire.score",
    "jaxal.acquire.gate",
    "jaxal.acquire.kernel",
    "jaxal.acquire.select",
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
    for entry in metadata.entry_points(group=GROUP):
        try:
            entry.load()
        except Exception as error:  # another's code: it may raise anything
            package = entry.dist.name if entry.dist else "a package"
            told = f"{type(error).__name__}: {error}"
            raise InputError(
                f"{GROUP}: {entry.value} of {package} cannot be imported ({told}); mend or remove it"
            ) from error
