"""Compiled programs are kept between runs, so that a second start does not compile what the first one did."""

import hashlib
import os
import platform
from pathlib import Path
from typing import Any

import jax

SETTINGS: Any = jax.config  # which has its fields at run time only
LARGEST = 2 * 2**30  # bytes; the programs longest unused go first


def keep() -> Path | None:
    """Lets JAX keep compiled programs in the user's cache folder; which, or None where nothing is kept.

    JAX's own settings win: JAX_COMPILATION_CACHE_DIR names another folder, JAX_ENABLE_COMPILATION_CACHE=false keeps
    nothing. JAX does not keep programs that call the host: the segment of a run whose labels come from outside.
    """
    if not SETTINGS.jax_enable_compilation_cache:
        return None
    if SETTINGS.jax_compilation_cache_dir:
        return Path(SETTINGS.jax_compilation_cache_dir)
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(base) / "jaxal" / f"programs-{_processor()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:  # a home that cannot be written to
        return None
    jax.config.update("jax_compilation_cache_max_size", LARGEST)
    jax.config.update("jax_compilation_cache_dir", str(folder))
    return folder


def _processor() -> str:
    """What tells processors with different instructions apart: the nodes of a cluster share one home."""
    found = platform.machine()
    try:
        with open("/proc/cpuinfo") as lines:
            found += next((line for line in lines if line.startswith(("flags", "Features"))), "")
    except OSError:
        found += platform.processor()
    return hashlib.sha256(found.encode()).hexdigest()[:12]
