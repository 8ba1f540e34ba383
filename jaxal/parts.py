"""Every module that registers a part, of jaxal and of packages beside it.

A package offers parts with an entry point of the group `jaxal.parts`, whose value is the module that registers them:

    [project.entry-points."jaxal.parts"]
    mine = "my_package.acquisition"
"""

import functools
import importlib
import importlib.util
import sys
from importlib import metadata
from pathlib import Path

from jaxal.types import InputError
from jaxal.uncertainty import METHODS

GROUP = "jaxal.parts"
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
    for entry in metadata.entry_points(group=GROUP):
        try:
            entry.load()
        except Exception as error:  # another's code: it may raise anything
            package = entry.dist.name if entry.dist else "a package"
            told = f"{type(error).__name__}: {error}"
            raise InputError(
                f"{GROUP}: {entry.value} of {package} cannot be imported ({told}); mend or remove it"
            ) from error


def import_file(path: str | Path) -> None:
    """Imports a Python file that registers parts. Raises InputError where it is missing or cannot be imported."""
    import_parts()
    path = Path(path)
    if not path.is_file():
        raise InputError(f"--part {path}: there is no such file; give a Python file that registers parts")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise InputError(f"--part {path}: not a Python file; give one that registers parts, such as mine.py")
    module = importlib.util.module_from_spec(spec)
    before = sys.modules.get(path.stem)
    sys.modules[path.stem] = module  # the annotations of its functions are looked up there
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        sys.modules.pop(path.stem)
        if before is not None:
            sys.modules[path.stem] = before
        told = " ".join(f"{type(error).__name__}: {error}".split())
        raise InputError(f"--part {path}: cannot be imported ({told}); mend it") from error
