"""The arguments of `jaxal bench`, and what they start; nothing here loads JAX."""

import argparse
import os
from collections.abc import Callable
from pathlib import Path


def add(bench: argparse.ArgumentParser) -> None:
    """The arguments of the command."""
    numbers = _separated(int)
    bench.add_argument("cases", metavar="CASE", nargs="*", help="forces, md, segment, train (default: all)")
    bench.add_argument(
        "--system", type=_separated(str), default=["aspirin"], help="aspirin, ethanol, si64, ... or files"
    )
    bench.add_argument("--members", type=numbers, default=[4], help="sizes of the committee, as in 1,4,8")
    bench.add_argument("--walkers", type=numbers, default=[1], help="walkers at a time, as in 1,8,64")
    bench.add_argument("--devices", type=numbers, default=[1], help="devices that share the work, as in 1,2,4")
    bench.add_argument("--precision", type=_separated(str), default=["float32"], help="float32, float64 or both")
    bench.add_argument("--batching", choices=("auto", "map", "vmap"), default="auto", help="of the members")
    kind = "full, shared or both: members with weights of their own, or heads on one backbone"
    bench.add_argument("--kind", type=_separated(str), default=["full"], help=kind)
    bench.add_argument("--signs", type=numbers, default=[0], help="random combinations of the heads, as in 0,2")
    bench.add_argument("--steps", type=int, default=20, help="of dynamics or training in one call")
    bench.add_argument("--batch", type=int, default=5, help="structures in a training step")
    bench.add_argument("--repeats", type=int, default=7, help="medians are taken over so many")
    bench.add_argument("--threads", type=int, help="threads of the CPU backend (default: all)")
    bench.add_argument("--seed", type=int, default=0, help="of weights, displacements and momenta")
    bench.add_argument("--profile", action="store_true", help="add time by part of the loop and the longest kernels")
    bench.add_argument("--compile", action="store_true", help="compile a second time, from the persistent cache")
    bench.add_argument("--out", type=Path, help="file that the records are appended to, as JSON lines")
    bench.add_argument(
        "--set", nargs="+", default=[], metavar="potential.option=value", help="options of the potential"
    )
    bench.set_defaults(command=_bench)


def _separated(kind: type) -> Callable[[str], list]:
    """A parser of values between commas."""

    def values(text: str) -> list:
        return [kind(word) for word in text.split(",")]

    values.__name__ = f"comma-separated {kind.__name__}"
    return values


def _bench(arguments: argparse.Namespace) -> None:
    if arguments.threads is not None:  # read when the backend starts, so before jax is imported
        if arguments.threads < 1:
            from jaxal.core.types import InputError

            raise InputError(f"bench: --threads {arguments.threads}: give 1 or more")
        for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NPROC", "PJRT_NPROC"):
            os.environ[name] = str(arguments.threads)
        if arguments.threads == 1:
            os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_cpu_multi_thread_eigen=false"
    from jaxal.bench import command
    from jaxal.bench.cases import CASES

    command.bench(
        command.Sweep(
            cases=arguments.cases or list(CASES),
            systems=arguments.system,
            members=arguments.members,
            walkers=arguments.walkers,
            precisions=arguments.precision,
            options=arguments.set,
            batching=arguments.batching,
            steps=arguments.steps,
            batch=arguments.batch,
            repeats=arguments.repeats,
            seed=arguments.seed,
            profile=arguments.profile,
            compile=arguments.compile,
            kinds=arguments.kind,
            signs=arguments.signs,
            devices=arguments.devices,
        ),
        arguments.out,
    )
