"""Parts that are not jaxal's own: of installed packages, and of files that the user names.

A package offers parts with an entry point of the group `jaxal.parts`, whose value is the module that registers them:

    [project.entry-points."jaxal.parts"]
    mine = "my_package.acquisition"

A model file says who registered its potential, but a name in a file that may come from anybody is never imported for
that alone: only a module that an installed package offers in this group is, and a file only where the user names it.
"""

import hashlib
import importlib
import importlib.util
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

from jaxal.core import registry

GROUP = f"{__name__.partition('.')[0]}.parts"
FOLDER = "parts"  # of the inputs of a run folder: the files with parts that it was started with
_files: dict[str, Path] = {}  # module -> the file it was imported from, in the order of import
_known: list[Path] = []  # files that the process which started this one imported, and this one did not


class Source(NamedTuple):
    """Who registers a part that is not jaxal's own; text is empty where there is none."""

    module: str
    package: str = ""  # the installed distribution
    version: str = ""
    file: str = ""  # name of the file that was imported by its path


def entry_points() -> list[metadata.EntryPoint]:
    """The modules that installed packages offer, in the order of their names."""
    return sorted(metadata.entry_points(group=GROUP), key=lambda entry: (entry.name, entry.value))


def import_packages() -> None:
    """Imports what installed packages offer. Raises InputError for a package whose parts cannot be imported."""
    for entry in entry_points():
        _load(entry)


def _load(entry: metadata.EntryPoint) -> None:
    from jaxal.core.errors import InputError

    try:
        entry.load()
    except Exception as error:  # another's code: it may raise anything
        package = entry.dist.name if entry.dist else "a package"
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise InputError(
            f"{GROUP}: {entry.value} of {package} cannot be imported ({reason}); mend or remove it"
        ) from error


def import_file(path: str | Path) -> None:
    """Imports a Python file that registers parts; one of the same contents as before is not imported again.

    Its module gets a name of its own, so that a file `random.py` hides nothing. Raises InputError where it is missing
    or cannot be imported.
    """
    from jaxal.core.errors import InputError

    path = Path(path)
    if not path.is_file():
        raise InputError(f"--part {path}: there is no such file; give a Python file that registers parts")
    where = path.resolve()
    name = f"jaxal_part_{where.stem}_{hashlib.sha256(where.read_bytes()).hexdigest()[:8]}"
    if name in _files:
        return
    spec = importlib.util.spec_from_file_location(name, where)
    if spec is None or spec.loader is None:
        raise InputError(f"--part {path}: not a Python file; give one that registers parts, such as mine.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # the annotations of its functions are looked up there
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        sys.modules.pop(name)
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise InputError(f"--part {path}: cannot be imported ({reason}); mend it") from error
    _files[name] = where


def files() -> tuple[Path, ...]:
    """The files that were imported by their paths, in that order, and those of which `know` was told."""
    return tuple(dict.fromkeys((*_files.values(), *_known)))


def know(paths: Sequence[str]) -> None:
    """Keeps, for processes that this one starts, the files with parts of the process that started it.

    They are not imported: a process that calculates labels has no use for them, and they may import JAX.
    """
    _known[:] = map(Path, paths)


def keep(inputs: Path) -> None:
    """Copies the files that were imported into the inputs of a run folder, from where `kept` gives them again."""
    for path in _files.values():
        target, others = inputs / FOLDER / path.name, 0
        while target.exists() and target.read_bytes() != path.read_bytes():  # another file of this name
            others += 1
            target = target.with_name(f"{path.stem}_{others}.py")
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)


def kept(inputs: Path) -> list[Path]:
    """The files with parts that a run folder holds, by name; who imports them runs what the folder's owner wrote."""
    return sorted((inputs / FOLDER).glob("*.py"))


def import_module(name: str) -> None:
    """Imports what `importable` has named in another process of the same user."""
    if name.endswith(".py"):
        import_file(name)
    else:
        importlib.import_module(name)


def importable(kind: str, name: str) -> str:
    """What another process imports for a part: the name of its module, or the path of its file."""
    module = registry.get(kind, name).__module__
    return str(_files.get(module, module))


def source_of(kind: str, name: str) -> Source | None:
    """Who registered a part; None for jaxal's own, and for what is not registered."""
    if name not in registry.names(kind):
        return None
    module = registry.get(kind, name).__module__
    if module.partition(".")[0] == "jaxal":
        return None
    if module in _files:
        return Source(module, file=_files[module].name)
    for entry in entry_points():
        if entry.dist is not None and (module == entry.module or module.startswith(f"{entry.module}.")):
            return Source(entry.module, entry.dist.name, entry.dist.version)
    return Source(module)


def part(kind: str, name: str, sources: Mapping[str, Any], where: str) -> Callable:
    """The registered part of a file, whose header says in `sources`, by kind, who registers it.

    Of installed packages only what the file names is imported. Raises InputError, which says what to install or to
    import, where the part is not registered after that; `where` is its beginning.
    """
    from jaxal.core.errors import InputError

    record = sources.get(kind) or {}
    source = Source(*(str(record.get(field, "")) for field in Source._fields))
    if name not in registry.names(kind) and source.module:
        for entry in entry_points():
            if entry.module == source.module:
                _load(entry)
    if name in registry.names(kind):
        return registry.get(kind, name)
    if source.file:
        right = f"it is registered by the file {source.file}: give --part, or import it with jaxal.import_part"
    elif source.package:
        right = f"it is registered by the package {source.package} {source.version}: install it"
    elif source.module:
        right = f"it is registered by the module {source.module}: import it first"
    else:
        right = f"there are {', '.join(registry.names(kind))}"
    raise InputError(f"{where}: unknown {kind} {name!r}; {right}")
