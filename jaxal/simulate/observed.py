"""What is observed of dynamics at one temperature: distances, diffusion, the spectrum of the velocities."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from jaxal.config.simulation import Simulation
from jaxal.core.errors import InputError
from jaxal.data.frames import fixed_atoms
from jaxal.report.figures import BLUE, GRAY, ORANGE
from jaxal.simulate import dynamics, outcome
from jaxal.simulate.dynamics import EVERY, OBSERVED, Prepared
from jaxal.simulate.motion import FIT, Motion, diffusion, directions, in_segment, spectrum
from jaxal.simulate.outcome import Outcome
from jaxal.simulate.radial import Pair, radial
from jaxal.simulate.sampling import OPINIONS, in_windows, shifts
from jaxal.simulate.surface import opinions
from jaxal.simulate.walkers import Frames

SHORT = 2.0  # fs, between frames of a spectrum
MOST = 4e9  # bytes that positions and velocities of all frames may take
FEWEST = 20  # frames of displacements
HIGHEST = 4500.0  # 1/cm, to which spectra are drawn
Say = Callable[[str], None]


def of_motions(walkers: Prepared, simulation: Simulation, what: str, spectral: bool) -> Simulation:
    """The fields, where they leave it open, for what is told of how atoms move; raises InputError as `check`."""
    every, drive = simulation.every, simulation.explore.drive
    if every is None:
        every = max(1, int(SHORT / walkers.sampler.timestep + 1e-9)) if spectral else EVERY
    simulation = dataclasses.replace(simulation, every=every)
    check(walkers, simulation, what, moves=True)
    if drive is None:
        drive = "member" if _members(walkers) > 1 else "mean"
    return dataclasses.replace(simulation, explore=dataclasses.replace(simulation.explore, drive=drive))


def check(walkers: Prepared, simulation: Simulation, what: str, moves: bool) -> None:
    """Raises InputError for walkers of no ensemble, and where `moves` count for those that a bias or a cell moves."""
    options, sampler, name = dict(simulation.explore.part.options), walkers.sampler, simulation.explore.part.name
    if sampler.bath is None or sampler.couples or options.get("final_temperature") is not None:
        raise InputError(f"explore.name: {name} is no dynamics at one temperature; give nvt_nose_hoover or another")
    for term in walkers.terms:
        if not term.bias.static or in_windows(walkers, term) or (moves and term.name != OBSERVED):
            raise InputError(f"bias: {term.name} changes how walkers move, and so {what}; leave it out")
    if not moves:
        return
    if sampler.barostat:
        raise InputError(f"explore.name: {name} moves atoms with the cell, and so changes {what}; give nvt_nose_hoover")
    size = 24 * dynamics.number_of_frames(walkers, simulation) * len(walkers.starts) * len(walkers.starts[0])
    if size > MOST:
        raise InputError(
            f"length: frames take {size / 1e9:.0f} GB; give a shorter one, fewer walkers or a larger every"
        )


def cautions(simulation: Simulation) -> list[str]:
    """What there is to say of how atoms move under this explorer."""
    friction = dict(simulation.explore.part.options).get("friction")
    if not friction:
        return []
    return [f"explore.friction: {friction:g} /fs slows atoms down and broadens lines; nvt_nose_hoover and nve do not"]


def of_distances(
    walkers: Prepared, simulation: Simulation, folder: Path, say: Say, discard: float, reach: float, bins: int
) -> Outcome:
    """Distributions of the distances between atoms up to `reach` (Å)."""
    series, kept = dynamics.run(walkers, simulation, folder, say, OPINIONS)
    simulated, what = dynamics.record(walkers, simulation, series), "the distribution of distances"
    outcome.of_dynamics(folder, simulated, series)
    dynamics.to_the_end(walkers, simulation, series, what)
    frames = [kept[row] for row in sorted(kept) if row >= int(discard * len(series.time))]
    if not frames:
        raise InputError("--discard: it leaves no frame; give a smaller part, or a larger length")
    options = dict(simulation.explore.part.options)
    kelvin = float(options["temperature"]) if walkers.sampler.thermostat else None
    result = radial(frames, np.linspace(0, reach, bins + 1), kelvin, shifts(walkers.surface.model, frames))
    record = {
        "distance": result.distance,
        "pairs": [
            {name: value for name, value in pair._asdict().items() if name != "symbols"} | {"elements": pair.symbols}
            for pair in result.pairs
        ],
        "frames": len(frames) * len(frames[0]),
        "simulation": simulated,
    }
    figure, axes = _panels(len(result.pairs))
    for each, pair in zip(axes, result.pairs, strict=True):
        shown, name = _shown(pair)
        _line(each, result.distance, shown, pair.error, pair.spread)
        each.set(ylabel=f"{'-'.join(pair.symbols)}, {name}")
    if axes:
        axes[0].legend(fontsize=9)
        axes[-1].set(xlabel="distance, Å")
    outcome.write(folder, "radial_distribution", record, {}, figure)
    lines = [f"{record['frames']} frames, distances up to {reach:g} Å"]
    for pair in result.pairs:
        shown, name = _shown(pair)
        top = int(np.argmax(shown))
        spread = f" +- {pair.spread[top]:.2g} (members)" if np.isfinite(pair.spread[top]) else ""
        error = f" +- {pair.error[top]:.2g}" if np.isfinite(pair.error[top]) else ""
        where = f"{'-'.join(pair.symbols):<7} highest at {result.distance[top]:.3f} Å"
        lines.append(f"{where}: {shown[top]:.3g}{error}{spread} {name}")
    return outcome.to_json(record), "\n".join([*lines, _supported(simulated)])


def of_diffusion(walkers: Prepared, simulation: Simulation, folder: Path, say: Say, discard: float) -> Outcome:
    """Diffusion coefficients by element, along the directions that repeat."""
    start = walkers.starts[0]
    if not start.pbc.any():
        raise InputError("STRUCTURE: it repeats in no direction, and nothing diffuses; give a periodic one")
    if (number := _left(walkers, simulation, discard)) < FEWEST:
        raise InputError(f"length: {number} frames are too few for displacements; give more, or a smaller every")
    motion, simulated = _moved(walkers, simulation, folder, say, discard, "the diffusion")
    along = directions(start.cell.array, start.pbc)
    time, elements = diffusion(motion, along)
    record = {
        "directions": len(along),
        "time": time,
        "elements": [each._asdict() | {"displacement": each.displacement._asdict()} for each in elements],
        "members": motion.members if motion.members > 1 else None,
        "simulation": simulated,
    }
    figure, (axes,) = _panels(1)
    for each, color in zip(elements, (BLUE, ORANGE, GRAY, "black") * len(elements), strict=False):
        value, error = each.displacement.value, np.nan_to_num(each.displacement.error)
        axes.fill_between(time, value - error, value + error, color=color, alpha=0.2, linewidth=0)
        axes.plot(time, value, color=color, label=each.symbol)
    axes.axvspan(FIT[0] * 2 * time[-1], time[-1], color=GRAY, alpha=0.1, linewidth=0)
    axes.set(xlabel="time, ps", ylabel="mean squared displacement, Å$^2$")
    axes.legend(fontsize=9)
    outcome.write(folder, "diffusion", record, {}, figure)
    lines = [f"along {len(along)} directions, from displacements over {FIT[0] * 2 * time[-1]:.3g} to {time[-1]:.3g} ps"]
    for each in elements:
        error = f" +- {each.error:.2g}" if np.isfinite(each.error) else ""
        spread = f" +- {each.spread:.2g} (members)" if np.isfinite(each.spread) else ""
        lines.append(f"{each.symbol:<3} {each.coefficient:.4g}{error}{spread} cm^2/s")
    return outcome.to_json(record), "\n".join([*lines, _supported(simulated)])


def of_spectrum(
    walkers: Prepared, simulation: Simulation, folder: Path, say: Say, discard: float, resolution: float
) -> Outcome:
    """The power spectrum of the velocities, as a density of states."""
    spacing = walkers.sampler.timestep * (simulation.every or EVERY)
    in_segment(spacing, _left(walkers, simulation, discard), resolution)  # before anything moves
    motion, simulated = _moved(walkers, simulation, folder, say, discard, "the spectrum")
    result = spectrum(motion, resolution)
    record = {
        "wavenumber": result.wavenumber,
        **{f"states{'_' + name if name != 'value' else ''}": values for name, values in result.total._asdict().items()},
        "elements": result.elements,
        "integral": float(np.trapezoid(result.total.value, result.wavenumber)),
        "members": motion.members if motion.members > 1 else None,
        "simulation": simulated,
    }
    figure, (axes,) = _panels(1)
    _line(axes, result.wavenumber, *result.total)
    axes.set(xlabel="wavenumber, cm$^{-1}$", ylabel="states per cm$^{-1}$", xlim=(0, HIGHEST), ylim=(0, None))
    axes.legend(fontsize=9)
    outcome.write(folder, "power_spectrum", record, {}, figure)
    value = result.total.value
    inner = np.flatnonzero((value[1:-1] > value[:-2]) & (value[1:-1] >= value[2:])) + 1
    highest = sorted(inner[np.argsort(value[inner])[::-1][:12]])
    lines = [f"{len(result.wavenumber)} points, {result.wavenumber[1]:.3g} cm^-1 apart; lines"]
    for row in highest:
        spread = f" +- {result.total.spread[row]:.2g} (members)" if np.isfinite(result.total.spread[row]) else ""
        lines.append(f"{result.wavenumber[row]:8.0f} cm^-1: {value[row]:.3g}{spread} states per cm^-1")
    lines.append(f"{record['integral']:.1f} states in all")
    return outcome.to_json(record), "\n".join([*lines, _supported(simulated)])


def _moved(
    walkers: Prepared, simulation: Simulation, folder: Path, say: Say, discard: float, what: str
) -> tuple[Motion, dict[str, Any]]:
    """How atoms moved after the first part of dynamics, and the record of these."""
    parts: list[tuple[np.ndarray, np.ndarray]] = []
    start = walkers.starts[0]

    def watch(frames: Frames) -> None:
        position = np.asarray(frames.structure.position)[:, :, : len(start)]
        parts.append((position, frames.velocity[:, :, : len(start)]))

    series, _ = dynamics.run(walkers, simulation, folder, say, watch=watch)
    simulated = dynamics.record(walkers, simulation, series)
    outcome.of_dynamics(folder, simulated, series)
    dynamics.to_the_end(walkers, simulation, series, what)
    first = int(discard * len(series.time))
    position, velocity = (np.concatenate(each)[first:] for each in zip(*parts, strict=True))
    motion = Motion(
        spacing=walkers.sampler.timestep * (simulation.every or EVERY),
        mass=start.get_masses(),
        symbols=tuple(start.get_chemical_symbols()),
        fixed=np.asarray(fixed_atoms(start)),
        position=position,
        velocity=velocity,
        temperature=series.temperature[first:],
        members=_members(walkers) if simulation.explore.drive == "member" else 1,
    )
    return motion, simulated


def _left(walkers: Prepared, simulation: Simulation, discard: float) -> int:
    """Frames after the first part."""
    number = dynamics.number_of_frames(walkers, simulation)
    return number - int(discard * number)


def _members(walkers: Prepared) -> int:
    """Members that a walker may follow."""
    return opinions(walkers.surface.model, walkers.starts[:1]).energy.shape[1]


def _shown(pair: Pair) -> tuple[np.ndarray, str]:
    """What is drawn of a pair, and its unit."""
    return (pair.shell, "atoms per Å") if pair.density is None else (pair.density, "g(r)")


def _panels(number: int) -> tuple[Figure, Sequence[Any]]:
    figure = Figure(figsize=(6.6, 3.6 if number == 1 else 1.8 * max(number, 1)), layout="constrained")
    return figure, list(np.atleast_1d(figure.subplots(number, sharex=True))) if number else []


def _line(axes: Any, x: np.ndarray, value: np.ndarray, error: np.ndarray, spread: np.ndarray) -> None:
    """A curve with its two errors."""
    for bar, color, name in ((2 * error, BLUE, "two standard errors"), (spread, ORANGE, "members")):
        if np.isfinite(bar).any():
            bar = np.nan_to_num(bar)
            axes.fill_between(x, value - bar, value + bar, color=color, alpha=0.25, linewidth=0, label=name)
    axes.plot(x, value, color=BLUE, linewidth=1.0, label="mean")


def _supported(simulated: dict[str, Any]) -> str:
    part = simulated["supported"]
    return "supported: " + ("not known" if part is None else f"{100 * part:.1f} % of the frames")
