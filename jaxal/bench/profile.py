"""Where the time of a compiled program goes: by part of the loop and by kernel, from a profile of the device.

The parts of the loop are named in the source (`jax.named_scope`), the names travel with every operation to the
compiled program, and the profiler says how long each operation of it ran.
"""

import re
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax

PARTS = ("forces", "training", "neighbors", "gate")  # the scopes of the loop; what is in none of them is "other"
NAME = re.compile(r"%?([\w.\-]+) = .*?metadata=\{[^}]*op_name=\"([^\"]*)\"")
CALLS = ("while", "conditional", "call")  # what they run is timed by itself


class Profile(NamedTuple):
    """Time of one call in ms, of all threads together."""

    parts: dict[str, float]  # by part of the loop
    kernels: list[tuple[str, str, float]]  # (operation, its name in the source, ms), the longest first


def profile(compiled: Any, call: Callable[[], Any], calls: int = 1, longest: int = 12) -> Profile | None:
    """Profiles `calls` calls; None where the backend's profile tells nothing about single operations."""
    source = dict(NAME.findall(compiled.as_text()))
    jax.block_until_ready(call())
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for _ in range(calls):
                jax.block_until_ready(call())
        traces = sorted(Path(folder).rglob("*.xplane.pb"))
        if not traces:
            return None
        spent = _spent(jax.profiler.ProfileData.from_file(str(traces[-1])), source)
    if not spent:
        return None
    parts: dict[str, float] = dict.fromkeys((*PARTS, "other"), 0.0)
    for operation, time in spent.items():
        parts[part_of(source.get(operation, ""))] += time / calls
    kernels = [(name, source.get(name, ""), time / calls) for name, time in spent.most_common(longest)]
    return Profile(parts, kernels)


def part_of(name: str) -> str:
    """The part of the loop an operation belongs to: the innermost scope in its name that is one."""
    return next((word for word in reversed(re.split(r"[/()]", name)) if word in PARTS), "other")


def _spent(data: Any, source: dict[str, str]) -> Counter:
    """Milliseconds by operation."""
    spent: Counter[str] = Counter()
    for plane in data.planes:
        for line in plane.lines:
            for event in line.events:
                name = event.name.lstrip("%")
                if name in source and not name.startswith(CALLS):
                    spent[name] += 1e-6 * event.duration_ns
    return spent
