"""Compiled programs are kept between runs, so that a second start does not compile what the first one did."""

import contextlib
import hashlib
import inspect
import os
import platform
import time
import warnings
from pathlib import Path
from typing import Any

import jax
from jax._src import compilation_cache, compiler

SETTINGS: Any = jax.config  # which has its fields at run time only
LARGEST = 2 * 2**30  # bytes; the programs longest unused go first


def keep() -> Path | None:
    """Lets JAX keep compiled programs in the user's cache folder; which, or None where nothing is kept.

    JAX's own settings win: JAX_COMPILATION_CACHE_DIR names another folder, JAX_ENABLE_COMPILATION_CACHE=false keeps
    nothing.
    """
    if not SETTINGS.jax_enable_compilation_cache:
        return None
    if "host_callbacks" in inspect.signature(compiler._cache_write).parameters:
        compiler.compile_or_get_cached = _keeping_those_that_call_the_host
    if SETTINGS.jax_compilation_cache_dir:
        return Path(SETTINGS.jax_compilation_cache_dir)
    try:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        folder = Path(base) / "jaxal" / f"programs-{_processor()}"
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # no home, or one that cannot be written to
        return None
    if not os.access(folder, os.W_OK | os.X_OK):
        return None
    _make_room(folder)  # JAX itself would look through the whole folder for each program that it keeps
    if (
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ
    ):  # many small programs take as long as a large one
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_compilation_cache_dir", str(folder))
    return folder


def _make_room(folder: Path, largest: int = LARGEST) -> None:
    """Removes the programs that were longest unused where they are too large together."""
    files = []
    for path in folder.glob("*-cache"):
        with contextlib.suppress(OSError):  # another process may have removed it
            stat = path.stat()
            files.append((max(stat.st_atime, stat.st_mtime), stat.st_size, path))
    total = sum(size for _, size, _ in files)
    for _, size, path in sorted(files):
        if total <= largest:
            return
        with contextlib.suppress(OSError):
            path.unlink()
        total -= size


_ordinary: Any = compiler.compile_or_get_cached


def _keeping_those_that_call_the_host(
    backend: Any, module: Any, devices: Any, options: Any, callbacks: Any, executable_devices: Any, *more: Any
) -> Any:
    """Compiles a program or takes it from the cache.

    As JAX does from 0.12 on: before (and Python 3.11 has 0.10 at most) it keeps no program that calls the host, such as
    the segment of a run whose labels come from outside. What is called is no part of a program, it is handed over when
    the program is loaded.
    """
    arguments = backend, module, devices, options, callbacks, executable_devices, *more
    if not callbacks or jax.process_count() > 1:
        return _ordinary(*arguments)
    key = ""
    try:
        cache: Any = compilation_cache._get_cache(backend)
        key = compilation_cache.get_cache_key(module, devices, options, backend) if cache else ""
        if key and (kept := cache.get(key)):
            whole = compilation_cache.decompress_executable(kept)
            program, _ = compilation_cache.extract_executable_and_time(whole)
            executable = backend.deserialize_executable(program, executable_devices, options, callbacks)
            jax.monitoring.record_event("/jax/compilation_cache/cache_hits")
            return executable
    except Exception as error:  # a damaged file or folder is no reason to end a run
        warnings.warn(f"no kept program can be loaded ({type(error).__name__}: {error}); compiling it", stacklevel=2)
    began = time.monotonic()
    compiled = _ordinary(*arguments)
    took = time.monotonic() - began
    if key and took >= SETTINGS.jax_persistent_cache_min_compile_time_secs:
        try:
            compilation_cache.put_executable_and_time(key, "calls the host", compiled, backend, int(took))
        except Exception as error:  # a full disk neither
            warnings.warn(f"a program cannot be kept ({type(error).__name__}: {error})", stacklevel=2)
    return compiled


def _processor() -> str:
    """What tells processors with different instructions apart: the nodes of a cluster share one home."""
    description = platform.machine()
    try:
        with open("/proc/cpuinfo") as lines:
            description += next((line for line in lines if line.startswith(("flags", "Features"))), "")
    except OSError:
        description += platform.processor()
    return hashlib.sha256(description.encode()).hexdigest()[:12]
