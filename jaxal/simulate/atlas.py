"""What a discovery leaves: minima and saddles with how sure each is, as JSON, extended XYZ and a figure, and text."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.figure import Figure

from jaxal.core.units import KCAL_PER_MOL
from jaxal.report.figures import BLUE, GRAY, ORANGE
from jaxal.simulate.discovery import Network, Step
from jaxal.simulate.outcome import Outcome, write
from jaxal.simulate.saddle import changes
from jaxal.validate.command import to_json


class Checked(NamedTuple):
    """What labels say of a minimum or saddle, eV."""

    energy: float  # total, of the method's own stationary point near it
    error: float  # what was taken off for that, all positive


def of_network(
    folder: Path, network: Network, minima: Sequence[Checked | None] = (), saddles: Sequence[Checked | None] = ()
) -> Outcome:
    """The network; with what labels say of minima and saddles, where there are any."""
    minima, saddles = list(minima) or [None] * len(network.minima), list(saddles) or [None] * len(network.steps)
    base = network.minima[0].energy
    floor = None if minima[0] is None else minima[0].energy
    wells = [
        {
            "molecules": molecules(minimum.graph),
            "graph": minimum.graph,
            "energy": minimum.energy - base,
            "supported": minimum.supported,
            "spread": minimum.spread,
            **_checked(check, floor),
        }
        for minimum, check in zip(network.minima, minima, strict=True)
    ]
    steps = [
        {
            "minima": step.sides,
            "energy": step.saddle.vibrations.energy - base,
            "barriers": [side.barrier for side in step.saddle.sides],
            "spreads": [side.spread for side in step.saddle.sides],
            "imaginary_frequency": float(step.saddle.vibrations.wavenumbers[0]),
            "supported": step.saddle.supported,
            "force_error": step.saddle.error,
            "bonds_made_and_broken": changes(step.saddle.sides[0].atoms, step.saddle.sides[1].atoms),
            **_checked(check, floor),
        }
        for step, check in zip(network.steps, saddles, strict=True)
    ]
    record = {"minima": wells, "saddles": steps, "failed": network.failed, "doubtful": len(network.doubtful)}
    written: dict[str, Any] = {
        "minima.xyz": (
            [minimum.atoms for minimum in network.minima],
            [{"energy_ev": minimum.energy} for minimum in network.minima],
        )
    }
    if network.steps:
        energies = [{"energy_ev": step.saddle.vibrations.energy} for step in network.steps]
        written["saddles.xyz"] = ([step.saddle.atoms for step in network.steps], energies)
        for number, step in enumerate(network.steps):
            sides = step.saddle.sides
            down = [*reversed(sides[0].frames), *sides[1].frames[1:]]
            written[f"path_{number}.xyz"] = (down, [{}] * len(down))
    if network.doubtful:
        written["doubtful.xyz"] = (network.doubtful, [{}] * len(network.doubtful))
    write(folder, "network", record, written, _figure(network))
    return to_json(record), "\n".join(_lines(wells, steps, network))


def molecules(graph: Sequence[str]) -> str:
    """The formulas of molecules, such as 2 H2 + C2H4."""
    counts = Counter(name.split(":")[0] for name in graph)
    return " + ".join(f"{number} {name}" if number > 1 else name for name, number in sorted(counts.items()))


def _checked(check: Checked | None, floor: float | None) -> dict[str, Any]:
    """Energy by labels over that of the first minimum."""
    if check is None or floor is None:
        return {}
    return {"labeled": {"energy": check.energy - floor, "error": check.error}}


def _lines(wells: Sequence[dict[str, Any]], steps: Sequence[dict[str, Any]], network: Network) -> list[str]:
    lines = [f"{len(wells)} minima and {len(steps)} saddles; energies over the first, kcal/mol"]
    lines += [f"{number:3d}  {_energy(well)}  {well['molecules']}{_unlike(well)}" for number, well in enumerate(wells)]
    for number, step in enumerate(steps):
        first, last = step["minima"]
        made, broken = step["bonds_made_and_broken"]
        what = f"{len(made)} bonds made, {len(broken)} broken" if made or broken else "no bond changes"
        lines.append(
            f"{number:3d}  {_energy(step)}  from {first} to {last}, {-step['imaginary_frequency']:.0f}i cm^-1, {what}"
            + _unlike(step)
        )
    lines += [f"     {count} pushes: {reason}" for reason, count in sorted(network.failed.items())]
    return lines


def _energy(row: dict[str, Any]) -> str:
    value = f"{row['energy'] / KCAL_PER_MOL:8.2f}"
    if "labeled" in row:
        labeled = row["labeled"]
        value += f" (labels: {labeled['energy'] / KCAL_PER_MOL:.2f} +- {labeled['error'] / KCAL_PER_MOL:.2f})"
    return value


def _unlike(row: dict[str, Any]) -> str:
    return "; unlike what the model was trained on" if row["supported"] is False else ""


def _figure(network: Network) -> Figure:
    """Minima as levels, saddles between those that they join."""
    figure = Figure(figsize=(max(4.8, 1.1 * len(network.minima)), 4.2), layout="constrained")
    axes, base = figure.subplots(), network.minima[0].energy
    heights = [(minimum.energy - base) / KCAL_PER_MOL for minimum in network.minima]
    for number, (minimum, height) in enumerate(zip(network.minima, heights, strict=True)):
        axes.hlines(height, number - 0.3, number + 0.3, color=GRAY if minimum.supported is False else BLUE, linewidth=2)
        axes.annotate(molecules(minimum.graph), (number, height), (0, -11), textcoords="offset points",
                      ha="center", fontsize=7)  # fmt: skip
    for step in network.steps:
        _drawn(axes, step, heights, (step.saddle.vibrations.energy - base) / KCAL_PER_MOL)
    axes.set(xlabel="minimum", ylabel="energy, kcal/mol", xticks=range(len(network.minima)))
    axes.margins(y=0.12)
    return figure


def _drawn(axes: Any, step: Step, heights: Sequence[float], top: float) -> None:
    """One saddle, and lines to both sides."""
    first, last = sorted(step.sides)
    middle = (first + last) / 2 if first != last else first + 0.45
    style = {"color": ORANGE, "linewidth": 0.8, "linestyle": "--"}
    axes.plot([first + 0.3, middle, max(last - 0.3, middle)], [heights[first], top, heights[last]], **style)
    axes.hlines(top, middle - 0.12, middle + 0.12, color=ORANGE, linewidth=2)
