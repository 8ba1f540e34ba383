"""What a batch selection costs on one CPU core: 32 of 4,096 candidates, 128 features, 400 known structures.

    python scripts/bench_select.py [--repeats 21] [--limit 50] [NAME ...]

Times every registered selection after compilation, in float32, on one core and one thread, on random features whose
spread falls off as 1/j. Repeats go round over the selections, so that a disturbance hits all of them. The smallest wall
time, and the median of the CPU time, tell what a selection takes where nothing else runs. Prints the table of
docs/acquisition.md and a verdict; the exit status is 1 where a selection's smallest time is above the limit.
"""

import argparse
import os
import platform
import sys
import time

import jax
import jax.numpy as jnp
import jaxlib
import numpy as np

from jaxal.core import registry
from jaxal.core.discovery import import_parts
from jaxal.core.precision import exact
from jaxal.core.types import Candidates


def on_one_core() -> None:
    """Binds this process to the first core it may use, and XLA to one thread; before JAX starts any."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false"
    jax.config.update("jax_platforms", "cpu")


def processor() -> str:
    """The name of the processor."""
    try:
        with open("/proc/cpuinfo") as lines:
            return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()


def example(arguments: argparse.Namespace) -> Candidates:
    """Random candidates and known structures."""
    rng = np.random.default_rng(arguments.seed)
    scale = 1.0 / np.arange(1, arguments.features + 1)

    def features(rows: int):
        return jnp.asarray(3.0 + scale * rng.normal(size=(rows, arguments.features)), jnp.float32)

    return Candidates(
        score=jnp.asarray(rng.lognormal(-2.0, 0.7, arguments.candidates), jnp.float32),
        feature=features(arguments.candidates),
        eligible=jnp.ones(arguments.candidates, bool),
        known=features(arguments.known),
        labeled=jnp.ones(arguments.known, bool),
    )


def main() -> int:
    """Times the selections; 1 where one is slower than the limit."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="selections; default: all")
    parser.add_argument("--candidates", type=int, default=4096)
    parser.add_argument("--features", type=int, default=128)
    parser.add_argument("--known", type=int, default=400)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=21)
    parser.add_argument("--limit", type=float, default=50.0, help="ms")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    on_one_core()
    import_parts()
    names = arguments.names or registry.names("select")
    inputs = jax.random.key(arguments.seed), example(arguments)
    calls, times = {}, {name: [] for name in names}
    for name in names:
        part = exact(registry.get("select", name))
        calls[name] = jax.jit(part, static_argnums=2).lower(*inputs, arguments.size).compile()
    for turn in range(arguments.repeats + 1):
        for name, call in calls.items():
            began = time.perf_counter(), time.process_time()
            jax.block_until_ready(call(*inputs))
            if turn:  # the first is to warm up
                times[name].append((1e3 * (time.perf_counter() - began[0]), 1e3 * (time.process_time() - began[1])))
    print(
        f"{arguments.size} of {arguments.candidates} candidates, {arguments.features} features, "
        f"{arguments.known} known, float32"
    )
    print(f"one core of {processor()}; jax {jax.__version__}, jaxlib {jaxlib.__version__}, seed {arguments.seed}")
    print(f"{arguments.repeats} repeats; load average {os.getloadavg()[0]:.1f}\n")
    print("| selection | median, ms | smallest, ms | CPU time, ms |\n|---|---|---|---|")
    for name, each in times.items():
        (wall, busy), least = np.median(each, axis=0), min(each)[0]
        print(f"| `{name}` | {wall:.1f} | {least:.1f} | {busy:.1f} |")
    slow = [name for name, each in times.items() if min(each)[0] > arguments.limit]
    verdict = f"above {arguments.limit:g} ms: {', '.join(slow)}" if slow else f"all within {arguments.limit:g} ms"
    print(f"\n{verdict}")
    return int(bool(slow))


if __name__ == "__main__":
    sys.exit(main())
