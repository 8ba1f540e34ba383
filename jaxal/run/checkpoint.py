"""Checkpoints: the state of a run on disk, bit for bit, in orbax's format.

A state is any pytree of arrays. Its leaves are stored flat, each with its path, dtype and shape, so NamedTuples,
jax-md and optax states need no rule of their own; typed PRNG keys are stored as their key data. The structure of
a restored state comes from an example, the shapes from the disk: a buffer that has grown since keeps its size.

A checkpoint is written beside its place and renamed, and carries a SHA-256 of its contents; another of each of its
files is written last and checked before anything else reads them. The last two are kept: where the newest cannot be
read or a hash differs, the one before is taken.
"""

import functools
import hashlib
import json
import logging
import shutil
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from jaxal.core.types import InputError

FORMAT = 3
KEPT = 2
DISK = (
    "No space left on device",
    "Disk quota exceeded",
    "File too large",
    "Read-only file system",
    "Permission denied",
)
_SUMS = "sha256sums"  # a file of the checkpoint, as the program sha256sum writes it
_DIGEST = "sha256"  # the name of the hash among the stored arrays
_TEMPORARY = ".orbax-checkpoint-tmp"  # how orbax marks a checkpoint that is being written
T = TypeVar("T")


class Stored(NamedTuple):
    """A checkpoint as it is on disk: the leaves of its state, and of what kind they are."""

    record: dict[str, Any]  # JSON
    arrays: dict[str, np.ndarray]
    source: str


def save(directory: str | Path, step: int, state: Any, host: Mapping[str, Any]) -> None:
    """Writes the checkpoint `directory/step`, then removes all but it and the one before.

    Parameters
    ----------
    directory
        Folder of this run's checkpoints and nothing else.
    step
        Number of the checkpoint. Those with a larger number are removed too: the run has gone back behind them.
    state
        Pytree of arrays (JAX, numpy, typed keys, Python numbers).
    host
        What the host remembers; values that JSON can hold, floats come back exactly.

    Raises InputError where it cannot be written, such as on a full disk.
    """
    directory = Path(directory).resolve()
    directory.mkdir(parents=True, exist_ok=True)
    leaves: list[Any] = []
    arrays: dict[str, np.ndarray] = {}
    flat = jax.tree_util.tree_flatten_with_path(state)[0]
    implementations = [str(jax.random.key_impl(leaf)) if _is_key(leaf) else None for _, leaf in flat]
    values = jax.device_get([jax.random.key_data(leaf) if _is_key(leaf) else leaf for _, leaf in flat])
    for row, ((path, _), value, implementation) in enumerate(zip(flat, values, implementations, strict=True)):
        value = np.asarray(value)
        leaves.append([jax.tree_util.keystr(path), value.dtype.name, list(value.shape), implementation])
        if value.size:  # orbax refuses empty arrays; the shape says all about them
            arrays[str(row)] = value
    record = {"format": FORMAT, "leaves": leaves, "host": dict(host)}
    arrays[_DIGEST] = _digest(record, arrays)
    try:
        with _silence(), _checkpointer() as checkpointer:
            checkpointer.save(
                directory / str(step),
                ocp.args.Composite(state=ocp.args.PyTreeSave(arrays), record=ocp.args.JsonSave(record)),
                force=True,
            )
        (directory / str(step) / _SUMS).write_text(_sums(directory / str(step)))
    except Exception as error:  # orbax and tensorstore raise many kinds for a full disk
        text = " ".join(f"{type(error).__name__} {error}".split())
        reason = next((words for words in DISK if words in text), text[:200])
        raise InputError(
            f"{directory}: checkpoint {step} cannot be written: {reason}; the one before stands"
        ) from error
    steps = _steps(directory)
    kept = [number for number in steps if number <= step][:KEPT]
    for other in set(steps) - set(kept):
        shutil.rmtree(directory / str(other))
    for unfinished in directory.glob(f"*{_TEMPORARY}*"):
        shutil.rmtree(unfinished)


def restore(directory: str | Path, like: T) -> tuple[T, dict[str, Any], int]:
    """The newest checkpoint that is whole: its state, what the host had remembered, and its number.

    `like` is a pytree with the structure and the dtypes of the state, such as the state of a new run or
    `jax.eval_shape` of it; the values and shapes come from the disk. Arrays go to the default device where `like`
    has JAX arrays, and stay numpy where it has numpy. A damaged checkpoint is passed over with a warning.

    Raises InputError where there is no whole checkpoint, or where it holds another structure or dtype than `like`.
    """
    stored = newest(directory)
    return fitted(stored, like), stored.record["host"], int(Path(stored.source).name)


def newest(directory: str | Path) -> Stored:
    """The newest checkpoint that is whole; a damaged one is passed over with a warning.

    Raises InputError where there is none, and for one that another version of jaxal has written in another format.
    """
    directory = Path(directory).resolve()
    reasons = []
    for step in _steps(directory):
        try:
            record, arrays = _read(directory / str(step))
        except InputError:  # of another version: those before it are, too
            raise
        except Exception as error:  # orbax and tensorstore raise many kinds for a damaged file
            reason = (str(error).splitlines() or [""])[0][:200]
            reasons.append(f"{step}: {type(error).__name__} {reason}")
            warnings.warn(f"checkpoint {directory / str(step)} is damaged, trying the one before", stacklevel=2)
            continue
        return Stored(record, arrays, str(directory / str(step)))
    raise InputError(f"{directory}: no whole checkpoint ({'; '.join(reasons) or 'there is none'}); start a new run")


def latest(directory: str | Path) -> int | None:
    """Number of the newest checkpoint, whole or not; None where there is none."""
    return next(iter(_steps(Path(directory))), None)


def _steps(directory: Path) -> list[int]:
    """Numbers of the checkpoints, the newest first."""
    names = [entry.name for entry in directory.iterdir() if entry.is_dir()] if directory.is_dir() else []
    return sorted((int(name) for name in names if name.isdecimal()), reverse=True)


@contextmanager
def _silence() -> Iterator[None]:
    """What orbax logs of a failure is said in the error that is raised."""
    logger = logging.getLogger("absl")
    level = logger.level
    _hush_threads()
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


@functools.cache
def _hush_threads() -> None:
    """Threads of tensorstore may find, even later, that orbax has closed their event loop: nobody needs to know."""
    hook = sys.unraisablehook

    def shown(what: Any) -> None:
        if "Event loop is closed" not in str(what.exc_value):
            hook(what)

    sys.unraisablehook = shown


def _checkpointer() -> ocp.Checkpointer:
    # of several processes one writes and reads, with all there is: orbax must not wait for the others
    alone = ocp.options.MultiprocessingOptions(
        primary_host=jax.process_index(), active_processes={jax.process_index()}, barrier_sync_key_prefix="jaxal"
    )
    if jax.process_count() == 1:
        return ocp.Checkpointer(ocp.CompositeCheckpointHandler())
    options = ocp.CompositeOptions(multiprocessing_options=alone)
    handler = ocp.CompositeCheckpointHandler(composite_options=options)
    return ocp.Checkpointer(handler, multiprocessing_options=alone)


def _sums(path: Path) -> str:
    """The SHA-256 of each file of a checkpoint, one a line."""
    files = sorted(file for file in path.rglob("*") if file.is_file() and file.name != _SUMS)
    return "".join(f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.relative_to(path)}\n" for file in files)


def _read(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    # without the file, the run was killed just before it was written: then orbax finds out
    if (path / _SUMS).exists() and (path / _SUMS).read_text(errors="replace") != _sums(path):
        raise ValueError("its files are not what was written")
    with _checkpointer() as checkpointer:
        record = checkpointer.restore(path, ocp.args.Composite(record=ocp.args.JsonRestore())).record
        _check_format(record.get("format"), path)
        names = [str(row) for row, (_, _, shape, _) in enumerate(record["leaves"]) if 0 not in shape]
        types = {name: ocp.RestoreArgs(restore_type=np.ndarray) for name in [*names, _DIGEST]}
        arguments = ocp.args.PyTreeRestore(restore_args=types)
        arrays = checkpointer.restore(path, ocp.args.Composite(state=arguments)).state
    if not np.array_equal(arrays.pop(_DIGEST), _digest(record, arrays)):
        raise ValueError("its contents are not what was written")
    return record, arrays


def _check_format(number: Any, path: Path) -> None:
    """Raises InputError, which says who wrote the checkpoint, for another format."""
    if number == FORMAT:
        return
    age = "a newer" if isinstance(number, int) and number > FORMAT else "an older"
    version = f"checkpoint format {number}" if number is not None else "no checkpoint format"
    raise InputError(f"{path}: written by {age} jaxal ({version}); this one reads format {FORMAT}: go on with that one")


def _digest(record: dict[str, Any], arrays: dict[str, np.ndarray]) -> np.ndarray:
    total = hashlib.sha256(json.dumps(record, sort_keys=True).encode())
    for name in sorted(arrays):
        total.update(np.ascontiguousarray(arrays[name]).tobytes())
    return np.frombuffer(total.digest(), np.uint8)


def fitted(stored: Stored, like: T) -> T:
    """The stored leaves in the structure of `like`. Raises InputError for another structure or dtype."""
    leaves, (_, arrays, source) = stored.record["leaves"], stored
    flat, structure = jax.tree_util.tree_flatten_with_path(like)
    names, paths = [leaf[0] for leaf in leaves], [jax.tree_util.keystr(path) for path, _ in flat]
    if names != paths:
        odd = next(iter(sorted(set(names) ^ set(paths))), "their order")
        raise InputError(f"{source}: holds another state than this configuration and version have (differs in {odd})")
    values = []
    for row, ((name, dtype, shape, implementation), (_, example)) in enumerate(zip(leaves, flat, strict=True)):
        value = arrays.get(str(row), np.zeros(shape, jnp.dtype(dtype)))
        if implementation is not None and _is_key(example):
            values.append(jax.random.wrap_key_data(jnp.array(value), impl=implementation))
            continue
        expected = np.asarray(example).dtype if isinstance(example, bool | int | float) else example.dtype
        if (implementation is not None) != _is_key(example) or value.dtype != expected:
            raise InputError(
                f"{source}: {name} is {implementation or dtype}, here it is {expected}; resume as it was run"
            )
        if isinstance(example, bool | int | float):
            values.append(value.item())
        elif isinstance(example, np.ndarray | np.generic):
            values.append(value)
        else:  # a copy: a state that is donated must not share memory with numpy
            values.append(jnp.array(value, copy=True))
    return jax.tree_util.tree_unflatten(structure, values)


def _is_key(leaf: Any) -> bool:
    return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
