"""Timing a function beside a reference, and the facts of the machine that belong into a record.

On a machine shared with other work a wall time says little. So a fixed matrix product is timed between the
repeats, and each record holds the ratio to it, of wall times and of CPU times (of all threads).
"""

import os
import platform
import resource
import sys
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from typing import Any, NamedTuple

import jax
import numpy as np

PACKAGES = ("jaxal", "jax", "jaxlib", "flax", "optax", "jax-md", "e3nn-jax", "numpy")
MATRIX = np.random.default_rng(0).random((1024, 1024), dtype=np.float32)
PAUSE = 0.05  # s, until threads that spin while they wait for work have parked


class Timing(NamedTuple):
    """Times of one unit of work, medians over the repeats. Times in ms unless the name says otherwise."""

    wall_ms: float
    wall_ms_min: float
    wall_ms_iqr: float  # between the quartiles
    cpu_ms: float  # of all threads of the process
    cpu_ms_min: float
    ref_ms: float  # of the reference, between the repeats
    ref_cpu_ms: float
    ratio: float  # wall time over the reference's
    ratio_cpu: float
    per_s: float
    per_cpu_s: float
    repeats: int
    inner: int  # calls in a repeat
    first_call_ms: float
    warmup_s: float


def reference() -> np.ndarray:
    """Median (wall, CPU) time in ms of a 1024x1024 float32 product in numpy, of five."""
    times = []
    for _ in range(5):
        cpu, wall = time.process_time(), time.perf_counter()
        np.matmul(MATRIX, MATRIX)
        times.append((time.perf_counter() - wall, time.process_time() - cpu))
    return 1e3 * np.median(times, axis=0)


def measure(
    function: Callable[[], Any],
    *,
    units: int = 1,
    repeats: int = 7,
    least: float = 0.2,
    most: int = 200,
    warmup: int = 2,
) -> Timing:
    """Times `function`, which does `units` units of work a call and returns arrays that are waited for.

    A repeat lasts at least `least` seconds, or `most` calls.
    """

    def call() -> float:
        start = time.perf_counter()
        jax.block_until_ready(function())
        return time.perf_counter() - start

    began = time.perf_counter()
    calls = [call() for _ in range(max(1, warmup))]
    warm = time.perf_counter() - began
    inner = int(np.clip(round(least / max(calls[-1], 1e-9)), 1, most))
    reference()
    time.sleep(PAUSE)
    references, rows = [reference()], []
    for _ in range(repeats):
        cpu, wall = time.process_time(), time.perf_counter()
        for _ in range(inner):
            jax.block_until_ready(function())
        rows.append([time.perf_counter() - wall, time.process_time() - cpu])
        time.sleep(PAUSE)
        references.append(reference())
    times = 1e3 * np.array(rows) / (inner * units)  # [repeats, (wall, cpu)]
    beside = 0.5 * (np.array(references[1:]) + np.array(references[:-1]))
    wall, cpu = np.median(times, axis=0)
    ratio, ratio_cpu = np.median(times / beside, axis=0)
    quartiles = np.percentile(times[:, 0], [25, 75])
    figures = {
        "wall_ms": wall,
        "wall_ms_min": times[:, 0].min(),
        "wall_ms_iqr": quartiles[1] - quartiles[0],
        "cpu_ms": cpu,
        "cpu_ms_min": times[:, 1].min(),
        "ref_ms": np.median(references[1:], axis=0)[0],
        "ref_cpu_ms": np.median(references[1:], axis=0)[1],
        "ratio": ratio,
        "ratio_cpu": ratio_cpu,
        "per_s": 1e3 / wall,
        "per_cpu_s": 1e3 / max(cpu, 1e-9),
        "first_call_ms": 1e3 * calls[0],
        "warmup_s": warm,
    }
    rounded = {name: round(float(value), 5) for name, value in figures.items()}
    return Timing(**rounded, repeats=repeats, inner=inner)


def machine() -> dict[str, Any]:
    """What a figure depends on beside the code: devices, threads, load, versions, time; and the peak memory so far."""
    devices = jax.devices()
    return {
        "backend": jax.default_backend(),
        "device": devices[0].device_kind,
        "cpu": processor(),
        "threads": int(os.environ.get("NPROC", 0)) or os.cpu_count(),
        "load1": round(os.getloadavg()[0], 2),
        "rss_mib": round(peak_rss() / 2**20, 1),
        "device_mib": None if (peak := peak_device()) is None else round(peak / 2**20, 1),
        "versions": {name: release for name in PACKAGES if (release := _version(name))}
        | {"python": platform.python_version()},
        "when": time.strftime("%Y-%m-%dT%H:%M:%S"),
    }


def processor() -> str:
    """Name of the processor, as far as the system tells."""
    try:
        with open("/proc/cpuinfo") as lines:
            return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def peak_rss() -> int:
    """Largest resident memory of this process so far, bytes."""
    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return size if sys.platform == "darwin" else 1024 * size


def peak_device() -> int | None:
    """Largest memory in use on the first device so far, bytes; None where the backend does not tell."""
    try:
        return (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    except (RuntimeError, NotImplementedError):
        return None


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
