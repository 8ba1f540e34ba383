"""`jaxal bench`: sweeps over cases, systems, members, walkers, precisions and devices; a table and JSON lines."""

import itertools
import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, get_args, get_type_hints

import jax
from jax.experimental.compilation_cache import compilation_cache

from jaxal.bench import roofline, systems
from jaxal.bench.cases import CASES, Setting, forces
from jaxal.bench.profile import PARTS, profile
from jaxal.bench.timing import machine, measure
from jaxal.config.loading import parse
from jaxal.config.schema import Bench, Committee, Precision
from jaxal.core import devices
from jaxal.core.compilation import SETTINGS
from jaxal.core.types import InputError

PRECISIONS = get_args(Precision)
KINDS = get_args(get_type_hints(Committee)["kind"])
COLUMNS = (
    ("case", "mode", "{}"),
    ("system", "system", "{}"),
    ("members", "K", "{}"),
    ("walkers", "B", "{}"),
    ("kind", "kind", "{}"),
    ("signs", "signs", "{}"),
    ("type", "dtype", "{}"),
    ("devices", "devices", "{}"),
    ("per", "unit", "{}"),
    ("wall ms", "wall_ms", "{:.3f}"),
    ("CPU ms", "cpu_ms", "{:.3f}"),
    ("atom-steps/s", "atom_steps_per_s", "{:.4g}"),
    ("µs/atom/step/member", "us_per_atom_step_member", "{:.4g}"),
    ("compile s", "compile_s", "{:.1f}"),
    ("kept, s", "kept_s", "{:.1f}"),
    ("roofline", "roofline", "{:.1%}"),
)


class Sweep(NamedTuple):
    """What to measure: every combination."""

    cases: Sequence[str]
    systems: Sequence[str]
    members: Sequence[int]
    walkers: Sequence[int]
    precisions: Sequence[str]
    options: Sequence[str] = ()  # of the potential, as potential.name=value
    batching: Any = "auto"
    steps: int = 20
    batch: int = 5
    repeats: int = 7
    seed: int = 0
    profile: bool = False
    compile: bool = False  # also a second time, from the persistent cache
    kinds: Sequence[str] = ("full",)  # of committees; a shared one of one member is left out
    signs: Sequence[int] = (0,)  # of shared committees; full ones have none
    devices: Sequence[int] = (1,)


def bench(sweep: Sweep, out: Path | None = None, show: Callable[[str], None] = print) -> list[dict[str, Any]]:
    """Measures every combination, one after the other; each record is shown and appended to `out` at once.

    A combination that fails (out of memory, say) leaves a record with its error, and the sweep goes on. Raises
    InputError for what cannot be meant, before anything is measured.
    """
    potential = parse({}, cls=Bench, overrides=sweep.options).potential
    unknown = [case for case in sweep.cases if case not in CASES]
    if unknown:
        raise InputError(f"bench: unknown case {unknown[0]!r}; there are {', '.join(CASES)}")
    if min((*sweep.members, *sweep.walkers, sweep.steps, sweep.batch, sweep.repeats)) < 1:
        raise InputError("bench: members, walkers, steps, batch and repeats must be 1 or more")
    wrong = [precision for precision in sweep.precisions if precision not in PRECISIONS]
    if wrong:
        raise InputError(f"bench: --precision {wrong[0]!r} is none of {', '.join(PRECISIONS)}")
    unknown = [kind for kind in sweep.kinds if kind not in KINDS]
    if unknown:
        raise InputError(f"bench: --kind {unknown[0]!r} is none of {', '.join(KINDS)}")
    if min(sweep.signs) < 0 or 1 in sweep.signs:
        raise InputError("bench: --signs must be 0, for the forces of all members, or 2 or more")
    if "shared" not in sweep.kinds and any(sweep.signs):
        raise InputError("bench: --signs are of shared committees; add --kind shared")
    if "full" not in sweep.kinds and 1 in sweep.members:
        raise InputError("bench: --kind shared needs 2 or more --members")
    if out is not None and not out.absolute().parent.is_dir():
        raise InputError(f"bench: --out {out}: there is no folder {out.absolute().parent}")
    try:
        potential.bind()((1,))
    except ValueError as error:
        raise InputError(f"bench: {error}") from error
    for _, _, members, walkers, _, number, (kind, _) in _points(sweep):
        try:
            devices.number(number, walkers, 1 if kind == "shared" else members)  # heads do not divide
        except InputError as error:
            raise InputError(f"bench: --{error}") from None
    built = {name: systems.build(name, sweep.seed) for name in sweep.systems}
    records = []
    show("| " + " | ".join(title for title, *_ in COLUMNS) + " |\n|" + "---|" * len(COLUMNS))
    for case, system, members, walkers, precision, number, (kind, signs) in _points(sweep):
        setting = Setting(
            system,
            built[system],
            potential,
            members,
            walkers,
            precision,
            sweep.batching,
            sweep.steps,
            sweep.batch,
            sweep.seed,
            kind,
            signs,
            number,
        )
        record = record_of(case, setting, sweep.repeats, sweep.profile, sweep.compile)
        records.append(record)
        show(row(record))
        if out is not None:
            with out.open("a") as lines:
                lines.write(json.dumps(record) + "\n")
    return records


def record_of(
    case: str, setting: Setting, repeats: int = 7, profiled: bool = False, compiled: bool = False
) -> dict[str, Any]:
    """The record of one combination; with `error` where it could not be measured."""
    record: dict[str, Any] = {"peer": "jaxal", "mode": case, "system": setting.system}
    record |= {"atoms": len(setting.atoms), "K": setting.members, "B": setting.walkers, "dtype": setting.precision}
    record |= {"kind": setting.kind, "signs": setting.signs, "devices": setting.devices}
    double = SETTINGS.jax_enable_x64
    try:
        jax.config.update("jax_enable_x64", setting.precision == "float64")
        program = CASES[case](setting)
        record |= program.facts
        record |= {"unit": program.unit, "trace_s": program.trace_s, "compile_s": program.compile_s}
        timing = measure(program.call, units=program.units, repeats=repeats)
        record |= program.facts | timing._asdict()  # what a call finds out is among the facts
        seconds = 1e-3 * timing.wall_ms
        per_unit = program.evaluations  # evaluations of one atom by one member
        record["atom_steps_per_s"] = round(per_unit / record["K"] / seconds, 1)
        record["us_per_atom_step_member"] = round(1e6 * seconds / per_unit, 4)
        if case in ("forces", "md"):
            cost = _cost(setting)
            if cost is not None:
                record |= {"flops": cost.flops, "bytes": cost.bytes} | roofline.share(cost, seconds)
        record |= _memory(program.compiled)
        if profiled or case == "segment":
            times = profile(program.compiled, program.call)
            if times is not None:
                total = sum(times.parts.values())
                record["parts"] = {part: round(times.parts[part] / total, 4) for part in (*PARTS, "other")}
                record["kernels"] = [[*names, round(time, 4)] for *names, time in times.kernels]
        if compiled:
            record["kept_s"] = _kept(case, setting)
    except (jax.errors.JaxRuntimeError, MemoryError) as error:
        record["error"] = " ".join(str(error).split())[:300]
    finally:
        jax.clear_caches()
        jax.config.update("jax_enable_x64", double)
    return record | machine()


def row(record: dict[str, Any]) -> str:
    """A record as a row of the table."""
    if "error" in record:
        names = [str(record[key]) for key in ("mode", "system", "K", "B", "kind", "signs", "dtype", "devices")]
        return "| " + " | ".join(names) + f" | {record['error'][:80]} |"
    cells = ("" if record.get(key) is None else form.format(record[key]) for _, key, form in COLUMNS)
    line = "| " + " | ".join(cells) + " |"
    if "parts" in record:
        line += "\n  " + ", ".join(f"{part} {value:.1%}" for part, value in record["parts"].items())
    return line


def _points(sweep: Sweep) -> Iterator[tuple[str, str, int, int, str, int, tuple[str, int]]]:
    forms = [(kind, signs) for kind in sweep.kinds for signs in (sweep.signs if kind == "shared" else (0,))]
    sizes = sweep.cases, sweep.systems, sweep.members, sweep.walkers, sweep.precisions, sweep.devices
    return (point for point in itertools.product(*sizes, forms) if point[2] > 1 or point[-1][0] == "full")


def _cost(setting: Setting) -> roofline.Cost | None:
    """XLA's count for all members: a loop over members would be counted once, so it is that of one, times them."""
    if setting.kind == "shared":
        return roofline.cost(forces(setting._replace(batching="vmap", devices=1)).compiled)
    cost = roofline.cost(forces(setting._replace(members=1, batching="vmap", devices=1)).compiled)
    return None if cost is None else roofline.Cost(setting.members * cost.flops, setting.members * cost.bytes)


def _kept(case: str, setting: Setting) -> float:
    """Seconds to compile a program that the persistent cache holds."""
    before = SETTINGS.jax_compilation_cache_dir, SETTINGS.jax_enable_compilation_cache
    least = SETTINGS.jax_persistent_cache_min_compile_time_secs
    with tempfile.TemporaryDirectory() as folder:
        try:
            jax.config.update("jax_enable_compilation_cache", True)
            jax.config.update("jax_compilation_cache_dir", folder)
            jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
            compilation_cache.reset_cache()
            times = []
            for _ in range(2):
                jax.clear_caches()
                times.append(CASES[case](setting).compile_s)
            return times[-1]
        finally:
            jax.config.update("jax_compilation_cache_dir", before[0])
            jax.config.update("jax_enable_compilation_cache", before[1])
            jax.config.update("jax_persistent_cache_min_compile_time_secs", least)
            compilation_cache.reset_cache()


def _memory(compiled: Any) -> dict[str, float]:
    """Memory of the program itself, MiB, where XLA tells."""
    analysis = compiled.memory_analysis()
    if analysis is None:
        return {}
    return {
        "arguments_mib": round(analysis.argument_size_in_bytes / 2**20, 2),
        "temporary_mib": round(analysis.temp_size_in_bytes / 2**20, 2),
    }
