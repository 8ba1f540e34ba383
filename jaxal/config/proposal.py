"""A first configuration for a structure: what its atoms, its electrons and the cost of a label suggest."""

import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import ase
import numpy as np

from jaxal.config import yaml12
from jaxal.config.loading import describe
from jaxal.config.schema import calibrating
from jaxal.core import registry
from jaxal.core.errors import InputError
from jaxal.data.electrons import formula
from jaxal.data.frames import fixed_atoms
from jaxal.explore.timestep import ENOUGH, fastest

STEPS = (2.0, 1.0, 0.5, 0.25, 0.2, 0.1, 0.05)  # fs, time steps that divide a picosecond
FORCES = 30_000  # force components that a first potential is learned from; those of experiments/ took 2,700 to 52,000
LABELS = (100, 400)  # no fewer and no more
# Labels for each atom of a reaction path, no fewer and no more of them in all; of its task; images of the band along it
PATH, PATHS, TASK, IMAGES = 2, (24, 60), 48, 9
LARGE = 100  # atoms from which on fewer walkers fill the processor
DEAR = 1.0  # s, a label that takes longer is not waited for
PERIODIC = ("open", "periodic in one direction", "periodic in two directions", "periodic")
THEORY = ("method", "xc")  # options that name the theory in a method such as PBE0/def2-svp


class Method(NamedTuple):
    """A reference method, as its section of a configuration has it."""

    kind: str  # of the registry: labeler or oracle
    name: str
    options: Mapping[str, Any]
    missing: tuple[registry.Option, ...]  # options that must be given and are not


def method_of(text: str) -> Method:
    """The method that a text names: `GFN2-xTB`, `pbe0/def2-svp`, `psi4:mp2/cc-pvtz`, or a registered labeler or oracle.

    A theory and a basis set are PySCF's where no program is named. Raises InputError for what is none of these.
    """
    program, colon, theory = text.rpartition(":")
    options: dict[str, Any] = {}
    gfn = next((name for name in ("GFN1-xTB", "GFN2-xTB") if theory.lower() == name.lower()), "")
    if gfn:
        program, options = program or "tblite", {"method": gfn}
    elif theory.count("/") == 1 and all(part.strip() for part in theory.split("/")):
        program = program or "pyscf"
        options = dict(zip(("theory", "basis"), map(str.strip, theory.split("/")), strict=True))
    elif not colon:
        program = theory
    kind = next((kind for kind in ("labeler", "oracle") if program in registry.names(kind)), "")
    if not kind:
        known = ", ".join(registry.names("labeler") + registry.names("oracle"))
        raise InputError(
            f"--method: {text!r} is no method; give GFN2-xTB, a theory and a basis set such as pbe0/def2-svp or "
            f"psi4:mp2/cc-pvtz, or one of {known}"
        )
    listed = {option.name: option for option in registry.options(kind, program)}
    if "theory" in options:
        name = next((name for name in THEORY if name in listed), "")
        if not name or "basis" not in listed:
            raise InputError(f"--method: {program} takes no theory and basis set as {theory!r}; give {program} alone")
        options = {name: options["theory"], "basis": options["basis"]}
    elif colon and not gfn:
        raise InputError(
            f"--method: {theory!r} is no theory with a basis set, such as pbe0/def2-svp; or give {program}"
        )
    if unknown := options.keys() - listed.keys():
        raise InputError(f"--method: {program} has no option {', '.join(sorted(unknown))}; give {program} alone")
    required = [option for option in listed.values() if option.default is inspect.Parameter.empty]
    return Method(kind, program, options, tuple(option for option in required if option.name not in options))


def timestep(starts: Sequence[ase.Atoms]) -> tuple[float, str]:
    """A time step (fs) that the fastest bond of these structures bears ten times in a period, and why."""
    stretch = fastest(starts)
    if stretch is None:
        return STEPS[0], "no bond vibrates"
    step = next((step for step in STEPS if step <= stretch.period / ENOUGH), STEPS[-1])
    return step, f"the {stretch.elements} stretch takes about {stretch.period:.1f} fs"


def labels(atoms: ase.Atoms) -> int:
    """How many labels a first run of these atoms may take: as many as have `FORCES` components of forces together."""
    free = max(1, 3 * int((~fixed_atoms(atoms)).sum()))
    return int(np.clip(round(FORCES / free, -1), *LABELS))


def configuration(
    starts: Sequence[ase.Atoms],
    file: str,
    method: Method,
    *,
    temperature: float,
    seconds: float | None,
    workers: int,
) -> str:
    """The text of a configuration, commented.

    Parameters
    ----------
    starts
        The structure that the walkers start from, or both sides of a reaction; `info` holds their charge and spin.
    file
        Where they stand, as the configuration names it.
    method
        The reference method.
    temperature
        Of the walkers, K.
    seconds
        What one label took; None where it is not known.
    workers
        Processes that calculate labels, where those are too dear to be waited for.
    """
    atoms, reaction = starts[0], len(starts) > 1
    budget = int(np.clip(PATH * len(atoms), *PATHS)) if reaction else labels(atoms)
    free, directions = int((~fixed_atoms(atoms)).sum()), int(atoms.pbc.sum())
    all_of = ", index: all" if len(starts) > 1 else ""
    small = len(atoms) <= (registry.get("task", "barrier")().largest or len(atoms))  # for the task
    paid = budget + ((TASK if small else 0) if reaction else calibrating(budget))
    cost = "" if seconds is None else f"; one label took {_time(seconds)}, so {paid} take {_time(paid * seconds)}"
    dear = seconds is not None and seconds > DEAR
    fields = {"name": method.name, **method.options}
    lines = [
        f"# {formula(atoms.numbers)}: {len(atoms)} atoms"
        + (f", {len(atoms) - free} of them fixed" if free < len(atoms) else "")
        + f", {PERIODIC[directions]}"
        + (", from one side of a reaction to the other" if reaction else ""),
        "# What is not here has its default: `jaxal check` shows every field with its unit.",
        f"system: {{file: {yaml12.inline(file)}{all_of}, charge: {atoms.info['charge']}, spin: {atoms.info['spin']}}}"
        "  # e, unpaired electrons",
        "",
        *(_band() if reaction else _dynamics(starts, temperature)),
    ]
    if directions == 3 and free == len(atoms) and not reaction:
        lines.append("# for a cell that follows a pressure: explore.name npt_nose_hoover, and train.stress_weight 1")
    lines += ["", f"# The reference method{cost}."]
    lines.append("label:")
    lines += [f"  {name}: {yaml12.inline(value)}" for name, value in fields.items()]
    for option in method.missing:
        lines += _blank(option, atoms)
    lines.append(f"  initial: {12 if reaction else 10}  # labels of displaced copies, before the dynamics")
    if dear and not reaction:
        lines.append("  mode: pooled  # the dynamics go on elsewhere while labels are calculated")
    if dear:
        lines.append(f"  workers: {workers}  # at a time")
    if reaction:
        lines.append("  calibration: 0  # labels for a bound on force errors: the barrier has an error of its own")
        # of the images that the committee is unsure of neighbors say nearly the same
        lines.append(f"  batch: {workers if dear else 1}  # the worst, then the committee learns and the band goes on")
    lines += [
        "",
        "# Frames whose force error, as estimated, is above the target are labeled.",
        f"gate: {{target_error: {0.1 if reaction else 0.3}}}  # eV/Å; lower asks for more labels",
        "",
    ]
    if reaction:
        lines.append(
            "# Few labels are learned from thoroughly, and energies, as barriers are, count for more than by default."
        )
        lines += [
            "train: {initial_steps: 1500, steps: 200, final_steps: 3000, learning_rate: 0.01, energy_weight: 5}",
            "",
        ]
        lines.append("# The band ends when it has converged, or at the first of these.")
        lines.append(f"stop: {{labels: {budget}, time: 3}}  # labels to learn from; ps: 3000 steps of the band")
        if small:
            lines += ["", "# Then saddle and ends are labeled and learned, until the barrier is sure."]
            lines.append(f"task: {{name: barrier, labels: {TASK}, tolerance: 0.004}}  # labels at most; eV")
    else:
        more = f"then {calibrating(budget)} labels more calibrate its bound"
        lines.append(f"# The run ends at the first of these; {more}.")
        lines.append(
            f"stop: {{labels: {budget}, quiet: 5}}  # labels to learn from; ps a walker without asking for one"
        )
    return "\n".join(lines) + "\n"


def _dynamics(starts: Sequence[ase.Atoms], temperature: float) -> list[str]:
    step, why = timestep(starts)
    return [
        "# The dynamics that visits structures: hotter than where the potential will be used, so as to see more.",
        f"explore: {{name: nvt_langevin, temperature: {temperature:g}, timestep: {step:g}, "
        f"walkers: {8 if len(starts[0]) < LARGE else 4}}}",
        f"# K, fs: {why}",
    ]


def _band() -> list[str]:
    return [
        "# A band from one side to the other, whose highest image climbs to the saddle; the sides relax, too.",
        f"explore: {{name: band, walkers: {IMAGES}, ends: relaxed, converged: 0.03}}  # images, eV/Å",
        "# nvt_langevin instead visits what lies around both sides, too",
    ]


def _blank(option: registry.Option, atoms: ase.Atoms) -> Iterator[str]:
    """Lines to be filled in for an option: one, or one for each element where it is a mapping."""
    what = describe(option.annotation)
    if what != "a mapping":
        yield f"  {option.name}:  # FILL IN: {what}"
        return
    yield f"  {option.name}:  # FILL IN, for each element"
    yield from (f"    {symbol}:" for symbol in dict.fromkeys(atoms.symbols))


def _time(seconds: float) -> str:
    """A duration with two digits, in its own unit."""
    unit, size = next(
        (unit, size) for unit, size in (("h", 3600), ("min", 60), ("s", 1), ("ms", 1e-3)) if seconds >= size or size < 1
    )
    return f"{seconds / size:.2g} {unit}"
