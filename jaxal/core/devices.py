"""Many devices and many hosts: the mesh of a run, where its arrays lie, and what its processes agree on.

A mesh has two axes. Members divide over the one, walkers over the other; where a loop over members or walkers stands,
`split` gives each device its own rows of it (`jax.shard_map`: a loop left to XLA's partitioner would run whole on every
device). Without a mesh everything here is the identity, and the program is that of one device.

With several processes (`join`) every process runs the same driver on the same mesh. What only one of them may do or
decide, such as reading files, labels and the clock, the first does, and tells the others (`from_first`), which
need not see its files.
"""

import math
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jaxlib
import numpy as np
from flax.serialization import msgpack_restore, msgpack_serialize
from jax._src import xla_bridge
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxal.core.types import InputError

WALKERS, MEMBERS = "walkers", "members"
CORES = 4  # devices of a CPU, unless XLA_FLAGS says how many
BLOCK = 4096  # bytes; messages are padded to whole ones, so that few sizes are compiled
# While one device waits for a label, all others wait for it in a collective. XLA ends a process whose collectives
# take longer than 40 s (CPU threads, first calls on GPUs) or half an hour (gloo, between processes).
PATIENCE = 10 * 24 * 3600  # s
LIMITS = (
    "xla_cpu_collective_call_warn_stuck_timeout_seconds",
    "xla_cpu_collective_call_terminate_timeout_seconds",
    "xla_cpu_collective_timeout_seconds",
    "xla_gpu_first_collective_call_warn_stuck_timeout_seconds",
    "xla_gpu_first_collective_call_terminate_timeout_seconds",
)
KNOWN = ("0.10", "0.12")  # of jaxlib: seen to have these limits
SETTINGS: Any = jax.config  # which has its fields at run time only
T = TypeVar("T")


def prepare(least: int = 1) -> None:
    """Makes devices of a CPU's cores, and lets devices wait for each other as long as a label takes.

    A CPU has `CORES` devices at most, no more than cores, but at least so many as a run that goes on has had. Of use
    before JAX first uses a device; what stands in XLA_FLAGS already is left as it is.
    """
    before = os.environ.get("XLA_FLAGS")
    flags = (before or "").split()
    there = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    defaults = {"xla_force_host_platform_device_count": max(least, min(there, CORES))} | _limits()
    more = [f"--{name}={value}" for name, value in defaults.items() if not any(name in flag for flag in flags)]
    os.environ["XLA_FLAGS"] = " ".join([*flags, *more])
    try:
        ready()  # now XLA has read them; processes that are started for labels may have another XLA
    finally:
        if before is None:
            del os.environ["XLA_FLAGS"]
        else:
            os.environ["XLA_FLAGS"] = before


def refuse_fork() -> None:
    """Raises InputError in a process that was forked from one that had used JAX, where JAX would wait for ever."""
    if _forked:
        raise InputError(
            "this process was forked from one that uses JAX, whose threads it lacks; start it in another way: "
            'multiprocessing.get_context("spawn") or "forkserver", or threads'
        )


def no_device() -> str | None:
    """Why JAX has no device here, such as with JAX_PLATFORMS=cuda on a host without a GPU; None where it has."""
    try:
        jax.devices()
    except Exception as error:  # JAX raises several kinds, some without a word
        text = " ".join(str(error).split())
        platforms = SETTINGS.jax_platforms
        prefix = f"JAX_PLATFORMS={platforms}: " if platforms else ""
        text = text.partition(" (you may need")[0].partition(" (set JAX_PLATFORMS")[0]
        reason = text[:300] or "no such device or plug-in"
        return f"{prefix}JAX has no device to compute on ({reason}); set JAX_PLATFORMS=cpu, or install what it needs"
    return None


def ready() -> None:
    """Makes sure that JAX can compute in this process. Raises InputError where it has no device, and after a fork."""
    refuse_fork()
    if reason := no_device():
        raise InputError(reason)


def _note_fork() -> None:
    global _forked
    _forked = _forked or bool(xla_bridge._backends)  # read without the lock, which may be held for ever here


_forked = False
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_note_fork)


def _limits() -> dict[str, int]:
    """The flags of patience; none, with a warning, where a newer XLA does not know one: it would end the process."""
    limits: dict[str, int] = dict.fromkeys(LIMITS, PATIENCE)
    if ".".join(jaxlib.__version__.split(".")[:2]) not in KNOWN:
        flags = " ".join(f"--{name}={value}" for name, value in limits.items())
        more = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
        trial = [sys.executable, "-c", "import jax; jax.devices()"]
        if subprocess.run(trial, env=more, capture_output=True).returncode:
            what = f"jaxlib {jaxlib.__version__} cannot be told to wait longer than it does by itself"
            warnings.warn(f"{what}: with many devices, labels that take longer may end the run", stacklevel=3)
            return {}
    return limits


def join() -> None:
    """Makes this process one of several that run together; before JAX first uses a device.

    Slurm and Open MPI say who is who; elsewhere JAX_COORDINATOR_ADDRESS (host:port of the first process),
    JAX_NUM_PROCESSES and JAX_PROCESS_ID (from 0) do. Raises InputError where neither does.
    """
    names = ("JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
    texts = [os.environ.get(name) for name in names]
    try:
        count, index = (None if text is None else int(text) for text in texts)
        jax.distributed.initialize(num_processes=count, process_id=index)
    except ValueError as error:  # JAX's word for what it could not find out
        raise InputError(
            f"--distributed: {error} Start it by srun or mpirun, or set JAX_COORDINATOR_ADDRESS (host:port), "
            f"{names[0]} and {names[1]}"
        ) from None
    except RuntimeError as error:
        raise InputError(f"--distributed: the processes do not find each other: {error}") from None


def first() -> bool:
    """Whether this process is the first: the one that labels, writes and shows."""
    return jax.process_index() == 0


def from_first(function: Callable[[], Any]) -> Any:
    """What `function` returns in the first process, in all of them; its InputError is raised in all.

    The others do not call it. They wait, however long it takes. It returns numbers, text, numpy arrays, None, or lists
    and dictionaries of these.
    """
    if jax.process_count() == 1:
        return function()
    message = b""
    if first():
        try:
            message = msgpack_serialize([function(), None])
        except InputError as error:
            message = msgpack_serialize([None, str(error)])
    size = int(multihost_utils.broadcast_one_to_all(np.asarray(len(message), np.int32)))
    padded = np.zeros(BLOCK * math.ceil(size / BLOCK), np.uint8)
    padded[: len(message)] = np.frombuffer(message, np.uint8)
    payload = np.asarray(multihost_utils.broadcast_one_to_all(padded), np.uint8)
    value, error = msgpack_restore(payload[:size].tobytes())
    if error is not None:
        raise InputError(error)
    return value


def number(count: int | str, walkers: int, members: int) -> int:
    """How many devices a run takes: `count`, or with "auto" the most that divide evenly.

    Members divide over gcd(devices, members) of them, and walkers over the rest; several processes take equally many
    each. Raises InputError for a number that does not divide evenly or that there is not.
    """
    processes = jax.process_count()
    there = len(jax.devices())
    fitting = [n for n in range(processes, there + 1, processes) if walkers % (n // math.gcd(n, members)) == 0]
    would = f"give {', '.join(map(str, fitting))}" if fitting else "give other numbers of walkers or members"
    here = f"there {'is 1' if there == 1 else f'are {there}'}" + (f" in {processes} processes" if processes > 1 else "")
    if count == "auto" and fitting:
        return max(fitting)
    if count == "auto":
        raise InputError(f"devices: {here}, and no number divides {walkers} walkers and {members} members; {would}")
    count = int(count)
    if count > there:
        raise InputError(f"devices: {count} is too large, {here}; {would}")
    if count % processes:
        raise InputError(f"devices: {count} does not divide over {processes} processes; {would}")
    if count not in fitting:
        common = math.gcd(count, members)
        raise InputError(
            f"devices: {count} does not fit: {common} of them in a row share {members} members, and explore.walkers "
            f"({walkers}) does not divide over {count // common} rows; {would}"
        )
    return count


def mesh(number: int, members: int) -> Mesh | None:
    """The first `number` devices, equally many of each process; None for a single one."""
    if number == 1:
        return None
    each = number // jax.process_count()
    ordered = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))
    chosen = [d for p in range(jax.process_count()) for d in [x for x in ordered if x.process_index == p][:each]]
    return Mesh(np.array(chosen).reshape(-1, math.gcd(number, members)), (WALKERS, MEMBERS))


def along(mesh: Mesh | None, axis: str, rows: int) -> P:
    """The leading axis of `rows` rows over an axis of the mesh, or whole on every device where it does not divide."""
    return P() if mesh is None or rows % mesh.shape[axis] else P(axis)


def split(mesh: Mesh | None, function: Callable[..., Any], inside: tuple[Any, ...], outside: Any) -> Callable[..., Any]:
    """`function` on each device's rows; `inside` and `outside` say how arguments and results are divided."""
    if mesh is None:
        return function
    return jax.shard_map(function, mesh=mesh, in_specs=inside, out_specs=outside, check_vma=False)


def gathered(mesh: Mesh | None, axis: str, tree: T) -> T:
    """Inside `split`: the rows [m ...] of all devices along an axis, in order."""
    if mesh is None or mesh.shape[axis] == 1:
        return tree
    return _rows(lambda x: jax.lax.all_gather(x, axis, axis=0, tiled=True), tree)


def own(mesh: Mesh | None, axis: str, tree: T) -> T:
    """Inside `split`: this device's rows, along an axis, of what every device has whole; undoes `gathered`."""
    if mesh is None or mesh.shape[axis] == 1:
        return tree

    def cut(x: jax.Array) -> jax.Array:
        rows = x.shape[0] // mesh.shape[axis]
        return jax.lax.dynamic_slice_in_dim(x, rows * jax.lax.axis_index(axis), rows)

    return _rows(cut, tree)


def _rows(function: Callable[[jax.Array], jax.Array], tree: T) -> T:
    """`function` on the arrays of a tree, on typed keys of random numbers as their data."""

    def each(x: jax.Array) -> jax.Array:
        if not jax.numpy.issubdtype(x.dtype, jax.dtypes.prng_key):
            return function(x)
        return jax.random.wrap_key_data(function(jax.random.key_data(x)), impl=jax.random.key_impl(x))

    return jax.tree.map(each, tree)


def once(mesh: Mesh, function: Callable[..., Any], shapes: Any, *arguments: Any) -> Any:
    """`function(arguments)`, run by the first device alone; every device gets its result, of the given shapes.

    `function` may call the host, without `ordered=True`: what comes next waits for the result.
    """

    def local(*arguments: Any) -> Any:
        empty = jax.tree.map(lambda s: jax.numpy.zeros(s.shape, s.dtype), shapes)
        mine = jax.lax.axis_index((WALKERS, MEMBERS)) == 0
        result = jax.lax.cond(mine, function, lambda *_: empty, *arguments)
        return jax.tree.map(_from_one, result)

    return split(mesh, local, (P(),) * len(arguments), P())(*arguments)


def _from_one(x: jax.Array) -> jax.Array:
    """The sum over all devices of what is zero on all but one."""
    whole = x.astype(np.int32) if x.dtype == bool else x
    return jax.lax.psum(whole, (WALKERS, MEMBERS)).astype(x.dtype)


def shardings(mesh: Mesh, specs: Any) -> Any:
    """The specs, a tree of them, on the mesh."""
    return jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs, is_leaf=lambda x: isinstance(x, P))


def laid(mesh: Mesh | None, specs: Any, tree: T) -> T:
    """`tree` with its arrays divided as `specs` say (one for each, or for a branch). In a program or outside of one.

    Outside, with several processes, arrays that each process has to itself must be the same in all.
    """
    if mesh is None:
        return tree
    return jax.jit(lambda x: x, out_shardings=shardings(mesh, specs))(tree)


def shapes(mesh: Mesh | None, specs: Any, tree: T) -> T:
    """Shapes like `tree`, laid out as `specs` say."""
    if mesh is None:
        return tree

    def of(sharding: NamedSharding, branch: Any) -> Any:
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), branch)

    return jax.tree.map(of, shardings(mesh, specs), tree)


def whole(tree: T) -> T:
    """`tree` with every array whole in every process, so that its numbers can be read. All processes call it."""
    if jax.process_count() == 1:
        return tree
    meshes = [x.sharding.mesh for x in jax.tree.leaves(tree) if isinstance(getattr(x, "sharding", None), NamedSharding)]
    return laid(meshes[0], P(), tree) if meshes else tree
