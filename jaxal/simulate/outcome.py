"""What a command leaves: JSON, extended XYZ, a figure, and a few lines of text."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ase
import matplotlib
import numpy as np
from ase.units import invcm
from matplotlib.figure import Figure

from jaxal.core.units import KCAL_PER_MOL
from jaxal.data import files, frames
from jaxal.report.figures import BLUE, GRAY, ORANGE, STYLE
from jaxal.simulate import dynamics
from jaxal.simulate.barrier import Barrier
from jaxal.simulate.dynamics import Series
from jaxal.simulate.phonons import Phonons
from jaxal.simulate.saddle import Search, changes
from jaxal.simulate.sampling import Answer
from jaxal.simulate.vibrations import Thermochemistry, Vibrations
from jaxal.validate.command import to_json

SLIGHT = 0.1  # THz; what is so little below zero is numerical
Outcome = tuple[dict[str, Any], str]  # what JSON has, and text


def of_barrier(folder: Path, barrier: Barrier, labeled: Mapping[str, Any] | None = None) -> Outcome:
    """The path, the saddle and their energies; `labeled` is what the reference method says of them, if it was asked."""
    oscillators = barrier.vibrations
    supported = None if barrier.supported is None else bool(barrier.supported.all())
    record = {
        "forward": barrier.forward,
        "forward_spread": barrier.forward_spread,
        "backward": barrier.backward,
        "backward_spread": barrier.backward_spread,
        "reaction": barrier.forward - barrier.backward,
        "converged": barrier.converged,
        "saddle": oscillators is not None,
        "imaginary_frequency": None if oscillators is None else float(oscillators.wavenumbers[0]),
        "joins": barrier.joins,
        "minima_between": barrier.passed,
        "gap": barrier.gap,
        "supported": supported,
        "coordinate": barrier.coordinate,
        "energies": barrier.energies,
        "spread": barrier.spread,
        "force_error": barrier.force_error,
        **({"labeled": dict(labeled)} if labeled else {}),
    }
    info = [
        {"energy_over_start": energy, "spread": spread}
        for energy, spread in zip(barrier.energies, barrier.spread, strict=True)
    ]
    write(folder, "barrier", record, {"path.xyz": (barrier.images, info)}, _path_figure(barrier))
    if barrier.saddle is not None:
        files.write(folder / "saddle.xyz", [frames.of_atoms(barrier.saddle, labeled=False)])
    lines = [
        f"barrier      {_kcal(barrier.forward, barrier.forward_spread)}",
        f"back         {_kcal(barrier.backward, barrier.backward_spread)}",
        f"reaction     {_kcal(barrier.forward - barrier.backward)}",
        "saddle       none near the highest image"
        if oscillators is None
        else f"saddle       one imaginary frequency, {-oscillators.wavenumbers[0]:.0f}i cm^-1; its reaction path "
        + ("leads to the bonds of both ends" if barrier.joins else "does not lead to the bonds of both ends"),
        f"band         {'converged' if barrier.converged else 'not converged: give more --steps'}",
    ]
    if barrier.passed:
        lines.append(f"path         passes {barrier.passed} minima in between: take each step by itself")
    if barrier.gap:
        lines.append("path         two images are far apart, the path may be higher between them: give more --images")
    lines.append(_support(supported, float(np.max(barrier.force_error))))
    return to_json(record), "\n".join(lines)


def of_search(folder: Path, search: Search) -> Outcome:
    """Saddles, the minima beside them, and the paths down."""
    rows = [
        {
            "energy": saddle.vibrations.energy,
            "imaginary_frequency": float(saddle.vibrations.wavenumbers[0]),
            "barriers": [side.barrier for side in saddle.sides],
            "spreads": [side.spread for side in saddle.sides],
            "supported": saddle.supported,
            "force_error": saddle.error,
            "bonds_made_and_broken": changes(saddle.sides[0].atoms, saddle.sides[1].atoms),
        }
        for saddle in search.saddles
    ]
    record: dict[str, Any] = {"saddles": rows, "failed": search.failed}
    written: dict[str, Any] = {}
    if search.saddles:
        atoms = [saddle.atoms for saddle in search.saddles]
        written["saddles.xyz"] = (atoms, [{"energy_ev": saddle.vibrations.energy} for saddle in search.saddles])
        sides = [side for saddle in search.saddles for side in saddle.sides]
        written["minima.xyz"] = ([side.atoms for side in sides], [{"energy_ev": side.energy} for side in sides])
        for number, saddle in enumerate(search.saddles):
            down = [*reversed(saddle.sides[0].frames), *saddle.sides[1].frames[1:]]
            written[f"path_{number}.xyz"] = (down, [{}] * len(down))
    write(folder, "saddle", record, written, None)
    lines = [f"{len(search.saddles)} saddles"]
    for number, (saddle, row) in enumerate(zip(search.saddles, rows, strict=True)):
        over = " and ".join(_kcal(side.barrier, side.spread) for side in saddle.sides)
        made, broken = row["bonds_made_and_broken"]
        what = f"{len(made)} bonds made, {len(broken)} broken" if made or broken else "no bond changes"
        where = "" if saddle.supported is not False else "; unlike what the model was trained on"
        lines.append(
            f"{number:3d}  {over} over its minima; {-saddle.vibrations.wavenumbers[0]:.0f}i cm^-1; {what}{where}"
        )
    lines += [f"     {count} tries: {reason}" for reason, count in search.failed.items()]
    return to_json(record), "\n".join(lines)


def of_vibrations(folder: Path, atoms: ase.Atoms, oscillators: Vibrations, thermal: Thermochemistry) -> Outcome:
    """Frequencies and what follows from them."""
    record = {
        "wavenumbers": oscillators.wavenumbers,
        "spread": oscillators.spread / invcm,
        "imaginary": oscillators.imaginary,
        "largest_force": oscillators.force,
        "energy": oscillators.energy,
        "thermochemistry": thermal,
    }  # fmt: skip
    figure, axes = _axes()
    axes.vlines(oscillators.wavenumbers, 0, 1, color=BLUE)
    axes.set(xlabel="wavenumber, cm$^{-1}$", yticks=[], ylim=(0, 1.2))
    write(folder, "vibrations", record, {"structure.xyz": ([atoms], [{}])}, figure)
    unit = record["spread"]
    kinds = ("a minimum", "a first-order saddle")
    kind = kinds[oscillators.imaginary] if oscillators.imaginary < 2 else "neither minimum nor saddle"
    bars = [f" +- {spread:.1f}" if math.isfinite(spread) else "" for spread in unit]
    lines = [f"{value:10.1f}{bar} cm^-1" for value, bar in zip(oscillators.wavenumbers, bars, strict=True)]
    lines.append(f"{oscillators.imaginary} imaginary: {kind}; largest force {oscillators.force:.2g} eV/Å")
    gas = f", {thermal.pressure:g} bar" if thermal.pressure is not None else ""
    lines.append(f"zero-point energy {thermal.zero_point:.4f} eV")
    thermal_state = f"entropy {1e3 * thermal.entropy:.4f} meV/K, free energy {thermal.free:.4f} eV"
    lines.append(f"at {thermal.temperature:g} K{gas}: {thermal_state}")
    return to_json(record), "\n".join(lines)


def of_phonons(folder: Path, atoms: ase.Atoms, lattice: Phonons, temperature: float) -> Outcome:
    """Dispersion, density of states, and thermal properties."""
    record = {
        "atoms": lattice.atoms,
        "displaced": lattice.displaced,
        "largest_force": lattice.force,
        "lowest": lattice.lowest,
        "segments": [segment._asdict() for segment in lattice.segments],
        "density": lattice.density,
        **{name: getattr(lattice, name) for name in ("temperature", "free", "entropy", "capacity")},
    }
    figure = Figure(figsize=(7.2, 3.6), layout="constrained")
    axes, beside = figure.subplots(1, 2, sharey=True, width_ratios=(3, 1))
    for segment in lattice.segments:
        for band, spread in zip(segment.frequency.T, segment.spread.T, strict=True):
            axes.fill_between(segment.distance, band - spread, band + spread, color=ORANGE, alpha=0.3, linewidth=0)
            axes.plot(segment.distance, band, color=BLUE, linewidth=1.0)
    corners: dict[float, str] = {}
    for segment in lattice.segments:
        for place, name in zip(segment.distance[[0, -1]], segment.names, strict=True):
            shown = corners.get(float(place), name)
            corners[float(place)] = name if shown == name else f"{shown}|{name}"
    axes.set_xticks(list(corners), list(corners.values()))
    axes.set(ylabel="frequency, THz", xlim=(min(corners), max(corners)))
    axes.axhline(0, color=GRAY, linewidth=0.8)
    beside.plot(lattice.density[:, 1], lattice.density[:, 0], color=BLUE, linewidth=1.0)
    beside.set(xlabel="states per THz", xlim=(0, None))
    write(folder, "phonons", record, {"structure.xyz": ([atoms], [{}])}, figure)
    highest = max(segment.frequency.max() for segment in lattice.segments)
    spread = max(segment.spread.max() for segment in lattice.segments)
    bar = f", members differ by up to {spread:.2g}" if math.isfinite(spread) else ""
    free, entropy, capacity = (
        float(np.interp(temperature, lattice.temperature, values))
        for values in (lattice.free, lattice.entropy, lattice.capacity)
    )
    lines = [
        f"{lattice.atoms} atoms in the primitive cell, forces of {lattice.displaced} displaced structures",
        f"frequencies  {lattice.lowest:.3f} to {highest:.3f} THz{bar}",
        "stability    no imaginary frequency"
        if lattice.lowest > -SLIGHT
        else "stability    imaginary frequencies (negative): this is no minimum, or its supercell is too small",
        f"at {temperature:g} K     free energy {free:.4f} eV, entropy {1e3 * entropy:.4f} meV/K, "
        f"heat capacity {1e3 * capacity:.4f} meV/K, per primitive cell",
        f"largest force in the structure {lattice.force:.2g} eV/Å",
    ]
    return to_json(record), "\n".join(lines)


def of_dynamics(folder: Path, record: dict[str, Any], series: Series) -> Outcome:
    """What walkers did."""
    record = to_json(record)
    dynamics.save(folder, record, series)
    shown = dynamics.variables(series) or {"temperature": series.temperature}
    figure = Figure(figsize=(6.6, 2.4 * len(shown)), layout="constrained")
    for axes, (name, values) in zip(
        np.atleast_1d(figure.subplots(len(shown), sharex=True)), shown.items(), strict=True
    ):
        axes.plot(series.time, np.where(series.counts, values, np.nan), linewidth=0.6)
        axes.set(ylabel=name)
    _draw(folder / "dynamics.svg", figure)
    ended = record["ended"]
    lines = [f"{record['walkers']} walkers, {record['frames']} frames of {record['explorer']}"]
    lines += [f"{ended.count(reason)} walkers: {reason}" for reason in dict.fromkeys(ended)]
    for name in ("temperature", "force_spread", "estimated_error"):
        if record[name] is not None:
            unit = {"temperature": "K"}.get(name, "eV/Å")
            lines.append(f"{name.replace('_', ' '):<16} {record[name]:.4g} {unit}, mean")
    lines.append(f"{'supported':<16} {_share(record['supported'])}")
    return record, "\n".join(lines)


def of_free_energy(folder: Path, answer: Answer, simulated: dict[str, Any]) -> Outcome:
    """A free energy along one or two variables."""
    profile, between = answer.profile, answer.difference
    record = {
        "variables": answer.names,
        "units": answer.units,
        "estimator": answer.estimator,
        "frames": answer.frames,
        "difference": between,
        "axes": profile.axes,
        "energy": profile.energy,
        "error": profile.error,
        "spread": profile.spread,
        "simulation": simulated,
    }
    figure, axes = _axes()
    if len(profile.axes) == 1:
        x, y = profile.axes[0], profile.energy / KCAL_PER_MOL
        axes.fill_between(x, y - 2 * profile.error / KCAL_PER_MOL, y + 2 * profile.error / KCAL_PER_MOL,
                          color=BLUE, alpha=0.2, linewidth=0, label="two standard errors")  # fmt: skip
        axes.fill_between(x, y - profile.spread / KCAL_PER_MOL, y + profile.spread / KCAL_PER_MOL,
                          color=ORANGE, alpha=0.3, linewidth=0, label="members")  # fmt: skip
        axes.plot(x, y, color=BLUE)
        axes.legend(fontsize=9)
        axes.set(xlabel=_labeled(answer, 0), ylabel="free energy, kcal/mol")
    else:
        drawn = axes.contourf(*profile.axes, profile.energy.T / KCAL_PER_MOL, levels=20)
        figure.colorbar(drawn, label="free energy, kcal/mol")
        axes.set(xlabel=_labeled(answer, 0), ylabel=_labeled(answer, 1))
    write(folder, "free_energy", record, {}, figure)
    lines = [f"{answer.frames} frames, {answer.estimator}; along {', '.join(answer.names)}"]
    if between is not None and not math.isfinite(between.energy):
        lines.append("above less below: one of the two sides was never visited")
    elif between is not None:
        bars = [f"{bar / KCAL_PER_MOL:.3f} ({name})" for bar, name in
                ((between.error, "statistical"), (between.spread, "members")) if math.isfinite(bar)]  # fmt: skip
        lines.append(f"above less below: {_kcal(between.energy)} +- {' +- '.join(bars)}")
    worst = np.nanmax(profile.error) / KCAL_PER_MOL if np.isfinite(profile.error).any() else math.nan
    lines.append(
        f"profile: up to {np.nanmax(profile.energy) / KCAL_PER_MOL:.2f} kcal/mol, standard error {worst:.3f} at most"
    )
    lines.append(f"supported: {_share(simulated['supported'])}")
    return to_json(record), "\n".join(lines)


def _labeled(answer: Answer, row: int) -> str:
    unit = answer.units[row]
    return f"{answer.names[row]}, {unit}" if unit else answer.names[row]


def _kcal(energy: float, spread: float = math.nan) -> str:
    """kcal/mol, with what the members say."""
    more = f" +- {spread / KCAL_PER_MOL:.2f} (members)" if math.isfinite(spread) else ""
    return f"{energy / KCAL_PER_MOL:.2f}{more} kcal/mol"


def _support(supported: bool | None, error: float) -> str:
    if supported is None:
        return "support      the model does not know what it was trained on"
    if not supported:
        return "support      some images are unlike what the model was trained on: learn there"
    bound = f", force errors up to {error:.2g} eV/Å by its bound" if math.isfinite(error) else ""
    return f"support      all images are like what the model was trained on{bound}"


def _share(part: float | None) -> str:
    return "not known" if part is None else f"{100 * part:.1f} % of the frames"


def _axes() -> Any:
    figure = Figure(figsize=(6.6, 3.6), layout="constrained")
    return figure, figure.subplots()


def _path_figure(barrier: Barrier) -> Figure:
    figure, axes = _axes()
    y, spread = barrier.energies / KCAL_PER_MOL, barrier.spread / KCAL_PER_MOL
    axes.fill_between(barrier.coordinate, y - spread, y + spread, color=ORANGE, alpha=0.3, linewidth=0, label="members")
    axes.plot(barrier.coordinate, y, "o-", color=BLUE, markersize=4, linewidth=1.2)
    axes.axhline(barrier.forward / KCAL_PER_MOL, color=GRAY, linewidth=0.8, linestyle="--", label="barrier")
    axes.set(xlabel="length of the path, Å", ylabel="energy, kcal/mol")
    axes.legend(fontsize=9)
    return figure


def write(
    folder: Path,
    name: str,
    record: dict[str, Any],
    structures: dict[str, tuple[Sequence[ase.Atoms], Sequence[dict[str, Any]]]],
    figure: Figure | None,
) -> None:
    """Writes a record as JSON, structures with what goes with each as extended XYZ, and a figure."""
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(to_json(record), indent=1, allow_nan=False)
    (folder / f"{name}.json").write_text(text + "\n", encoding="utf-8")
    for file, (images, info) in structures.items():
        rows = []
        for atoms, more in zip(images, info, strict=True):
            copy = atoms.copy()
            copy.calc = None
            copy.info |= {key: float(value) for key, value in more.items()}
            rows.append(frames.of_atoms(copy, labeled=False))
        files.write(folder / file, rows)
    if figure is not None:
        _draw(folder / f"{name}.svg", figure)


def _draw(path: Path, figure: Figure) -> None:
    with matplotlib.rc_context(STYLE):
        figure.savefig(path, metadata={"Date": None})
