"""`jaxal plan`: whether a configuration fits a device, how many walkers do, and what a step costs there."""

import argparse
import json
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from jaxal.core.errors import InputError
from jaxal.plan.targets import TARGETS

if TYPE_CHECKING:
    from jaxal.config.systems import Population
    from jaxal.plan.targets import Target

POOL = {"gpu": 0.75, "tpu": 0.95, "cpu": 0.9}  # of the memory that JAX takes by default, or that is left for it
MANY = 64  # walkers whose step takes more memory than the training


def add(plan: argparse.ArgumentParser) -> None:
    """The arguments of the command."""
    what = f"{', '.join(TARGETS)}, or this: the one there is (default)"
    plan.add_argument("--device", default="this", help=f"{what}; several with commas")
    plan.add_argument("--json", action="store_true", help="print JSON")
    plan.set_defaults(command=run)


def run(arguments: argparse.Namespace) -> None:
    """Prepares for the devices, then plans for each and prints what it finds."""
    from jaxal.plan import targets

    names = list(dict.fromkeys(arguments.device.split(",")))
    platforms = {targets.prepare(name).platform if name != "this" else "this" for name in names}
    if len(platforms) > 1:
        raise InputError(f"--device: {arguments.device} are of several kinds; give GPUs, TPUs or this alone")
    from jaxal.config.check import check
    from jaxal.config.loading import load
    from jaxal.config.systems import populations
    from jaxal.core.discovery import import_file
    from jaxal.data.structure import species_table

    for path in arguments.part:
        import_file(path)
    config = load(arguments.config, arguments.overrides)
    check(config)
    systems = populations(config)
    table = species_table([atoms for system in systems for atoms in system.starts])
    records = [plan(config, systems, table, TARGETS.get(name)) for name in names]
    print(json.dumps(records, indent=1) if arguments.json else "\n\n".join(map(text, records)))


def plan(
    config: Any, systems: "Sequence[Population]", table: tuple[int, ...], target: "Target | None"
) -> dict[str, Any]:
    """What a run of this configuration would need on a device, as plain values; None: the device there is.

    The step is compiled with many walkers and with four times as many, too: what each of them needs follows, and with
    it how many fit.
    """
    import jax

    from jaxal.core.placement import compiled_for, placement
    from jaxal.plan import programs, targets

    device = None if target is None else targets.device(target)
    platform = placement().platform if target is None else target.platform
    walkers = sum(system.walkers for system in systems)
    many = max(1, MANY // walkers)  # times the walkers there are
    with compiled_for(platform):
        run = programs.run_of(config, systems, table)
        step, training, segment = (make(run, device) for make in (programs.step, programs.train, programs.segment))
        runs = [programs.run_of(config, systems, table, factor) for factor in (many, 4 * many)]
        steps = [programs.step(each, device) for each in runs]
    needed, state = segment.held + segment.temporary, programs.size(run.state)
    memory = _memory(platform) if target is None else target.memory
    usable = int(POOL[platform] * memory)
    # of so many walkers the step takes more than the training
    totals = [programs.size(each.state) + step.temporary for each, step in zip(runs, steps, strict=True)]
    for_one = max(1.0, (totals[1] - totals[0]) / (3 * many * walkers))
    fits = needed <= usable
    largest = max(walkers, many * walkers + int((usable - totals[0]) // for_one)) if fits else 0
    # those of the walkers on average, which of several systems need not be whole
    atoms = sum(len(system.starts[0]) * system.walkers for system in systems) / walkers
    atoms, members = int(atoms) if atoms.is_integer() else round(atoms, 1), config.committee.members
    return {
        "device": platform if target is None else target.name,
        "kind": jax.devices()[0].device_kind if target is None else target.kind,
        "jax": jax.__version__,
        "atoms": atoms,
        "members": members,
        "walkers": walkers,
        "precision": config.precision,
        "memory": memory,
        "usable": usable,
        "state": state,
        "needed": needed,
        "needed_by_a_walker": round(for_one),
        "fits": fits,
        "largest_walkers": largest,
        "bytes_by_atom_member_step": round(step.bytes / (atoms * members * walkers)),
        "step": step._asdict(),
        "training": training._asdict(),
        "segment": segment._asdict(),
    }


def _memory(platform: str) -> int:
    """Bytes of memory of the device there is."""
    import jax

    stats = jax.devices()[0].memory_stats() or {}
    if platform != "cpu" and "bytes_limit" in stats:
        return int(stats["bytes_limit"] / POOL[platform])
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def text(record: dict[str, Any]) -> str:
    """A record as lines."""
    step, training, segment = (record[name] for name in ("step", "training", "segment"))
    foreign = sorted({*step["foreign"], *training["foreign"], *segment["foreign"]})
    most = record["largest_walkers"]
    share = record["needed"] / record["memory"]
    rows = {
        "device": f"{record['device']}, {record['kind']}, {_bytes(record['memory'])}",
        "system": f"{record['atoms']} atoms, {record['members']} members, {record['walkers']} walkers, "
        f"{record['precision']}",
        "fits": f"{'yes' if record['fits'] else 'NO'}: {_bytes(record['needed'])} of {_bytes(record['usable'])} that "
        f"JAX takes ({share:.2g} of the device), {_bytes(record['state'])} of them the state",
        "walkers": f"about {float(f'{most:.2g}'):.0f} fit, {_bytes(record['needed_by_a_walker'])} each",
        "step": f"{step['kernels']} kernels, {_bytes(step['bytes'])} moved: "
        f"{_bytes(record['bytes_by_atom_member_step'])} for each atom and member",
        "training step": f"{training['kernels']} kernels, {_bytes(training['bytes'])} moved",
        "foreign calls": ", ".join(foreign) if foreign else "none",
        "to compile": f"{segment['trace_s']:.0f} s to trace and {segment['compile_s']:.0f} s to compile here",
    }
    return "\n".join(f"{name:<14} {value}" for name, value in rows.items())


def _bytes(number: float) -> str:
    """A number of bytes with three digits, in its own unit."""
    unit, size = next((u, s) for u, s in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3), ("B", 1.0)) if number >= s or s == 1.0)
    return f"{number / size:.3g} {unit}"
