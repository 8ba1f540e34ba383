"""All that jaxal measures of an accelerator, in one command of ten minutes.

    python scripts/bench_gpu.py [--minutes 10] [--out gpu.jsonl]

Forces are compared first with those in float64 on the CPU; nothing is timed if they are wrong. Then aspirin with 1 to
1024 walkers and 1, 4 and 8 members, silicon from 64 to 32,768 atoms, the silicon program end to end with the time
of its parts, training, and the longest kernels. Every record goes to `--out` at once; what does not fit into the
minutes is named and left out. Runs on any backend of JAX, the CPU's too.

On a machine without a network that has jax, flax, optax, orbax and numpy, carry the pure-Python rest along:

    pip download --no-deps -d wheels e3nn-jax jax-md ase jaxtyping wadler-lindig filelock rich pyyaml   # with a network
    python -m pip install --no-index --no-deps wheels/*.whl && python -m pip install --no-deps --no-build-isolation .
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

TOLERANCE = 8.0  # times the error of the CPU's float32; sums in another order differ by less, TF32 by a hundred times
CHECKED = ("aspirin", "si64", "si512")


def main() -> int:
    """Runs everything; 1 if forces are wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--out", type=Path, default=Path("gpu.jsonl"))
    parser.add_argument("--largest", type=int, default=32768, help="silicon atoms")
    parser.add_argument("--forces", type=Path, help=argparse.SUPPRESS)  # in a process of its own, on the CPU
    arguments = parser.parse_args()
    if arguments.forces:
        single = {name: forces(name, "float32").tolist() for name in CHECKED}
        arguments.forces.write_text(
            json.dumps({name: [forces(name, "float64").tolist(), single[name]] for name in CHECKED})
        )
        return 0
    deadline = time.monotonic() + 60 * arguments.minutes
    if not correct():
        return 1

    from jaxal.bench import command, systems
    from jaxal.bench.cases import Setting
    from jaxal.config.loading import parse
    from jaxal.config.schema import Bench

    potential = parse({}, cls=Bench).potential
    longest = 0.0
    for case, system, members, walkers, profiled in points(arguments.largest):
        if time.monotonic() + longest > deadline:
            print(f"no time left for {case} {system}, {members} members, {walkers} walkers", flush=True)
            continue
        began = time.monotonic()
        setting = Setting(system, systems.build(system), potential, members, walkers, batch=32)
        record = command.record_of(case, setting, repeats=5, profiled=profiled)
        with arguments.out.open("a") as lines:
            lines.write(json.dumps(record) + "\n")
        print(command.row(record), flush=True)
        for name, source, ms in record.get("kernels", [])[:8]:
            print(f"  {ms:9.4f} ms  {name}  {source[-90:]}", flush=True)
        longest = max(longest, time.monotonic() - began)
    return 0


def points(largest: int) -> Iterator[tuple[str, str, int, int, bool]]:
    """(case, system, members, walkers, profile?), what tells most first."""
    yield "md", "aspirin", 4, 256, True
    yield "segment", "si64", 4, 8, True
    yield "md", f"si{min(4096, largest)}", 4, 1, True
    yield "train", "ethanol", 4, 1, True
    for walkers in (1, 16, 64, 1024):
        yield "md", "aspirin", 4, walkers, False
    for atoms in (64, 512, 32768):
        if atoms <= largest:
            yield "md", f"si{atoms}", 4, 1, False
    for members in (1, 8):
        yield "md", "aspirin", members, 256, False


def forces(system: str, precision: str) -> np.ndarray:
    """Forces of one member with weights of seed 0."""
    import jax

    from jaxal.bench import systems
    from jaxal.bench.cases import CASES, Setting
    from jaxal.config.loading import parse
    from jaxal.config.schema import Bench

    setting = Setting(system, systems.build(system), parse({}, cls=Bench).potential, 1, precision=precision)
    return np.asarray(jax.device_get(CASES["forces"](setting).call()[1]), np.float64)


def correct() -> bool:
    """Whether the forces of the backend in use are those of the CPU in float64, but for what float32 rounds.

    What that is depends on how much the forces of the neighbors cancel: in a crystal they are a thousand times what is
    left of them.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "forces.json"
        subprocess.run(
            [sys.executable, __file__, "--forces", file], env=os.environ | {"JAX_PLATFORMS": "cpu"}, check=True
        )
        expected = {name: np.array(both) for name, both in json.loads(file.read_text()).items()}
    good = True
    for name, (right, single) in expected.items():
        error, rounding = (float(np.abs(force - right).max()) for force in (forces(name, "float32"), single))
        good &= error <= TOLERANCE * rounding
        largest = np.abs(right).max()
        what = f"{error:.1e} eV/Å of {largest:.1e} at most, {rounding:.1e} on the CPU"
        print(f"forces of {name}: largest error {what}, {TOLERANCE:g} times that allowed", flush=True)
    return good


if __name__ == "__main__":
    sys.exit(main())
