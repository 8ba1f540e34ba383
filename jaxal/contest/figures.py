"""Figures of a contest, each a pure function from the numbers of its summary to a matplotlib Figure."""

import base64
import io
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from jaxal.report.figures import BLUE, GRAY, GREEN, ORANGE, RED, STYLE, _legend, _log, _numbers

PURPLE, SKY = "#CC79A7", "#56B4E9"
COLORS = (BLUE, ORANGE, GREEN, PURPLE, SKY)  # of the best strategies; random is black, farthest-point red
SHOWN = len(COLORS)
SCALES = {"force_rmse": (1e3, "force RMSE, meV/Å"), "energy_rmse": (1e3, "energy RMSE, meV/atom")}
WORST = {"force_max": (1.0, "largest force error, eV/Å"), "energy_max": (1e3, "largest energy error, meV/atom")}


def named(task: dict[str, Any]) -> dict[str, str]:
    """The strategies that are drawn in color: the baselines and the best by area."""
    strategies = task["strategies"]
    best = sorted(strategies, key=lambda name: strategies[name]["area"][0])
    chosen = [name for name in best if name not in ("random", "farthest")][:SHOWN]
    colors = dict(zip(chosen, COLORS, strict=False))
    return {name: color for name, color in {"random": "black", "farthest": RED}.items() if name in strategies} | colors


def _axes(height: float = 4.0) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(6.6, height), layout="constrained")
    return figure, figure.subplots()


def _bands(axes: Axes, task: dict[str, Any], measure: str, scale: float, others: bool = True) -> None:
    """A measure over the labels, with the band of its 95 % interval for the strategies in color."""
    colors = named(task)
    for name, strategy in task["strategies"].items():
        if measure not in strategy:
            continue
        values = scale * np.array([_numbers(row) for row in strategy[measure]])
        labels = _numbers(strategy["labels"])
        if name in colors:
            axes.fill_between(labels, values[:, 1], values[:, 2], color=colors[name], alpha=0.13, linewidth=0)
            axes.plot(labels, values[:, 0], color=colors[name], marker=".", label=name, zorder=3)
        elif others:
            axes.plot(labels, values[:, 0], color=GRAY, linewidth=0.8, alpha=0.5)


def curves(task: dict[str, Any]) -> Figure:
    """Error on the test frames against the number of labels."""
    figure, axes = _axes()
    scale, text = SCALES[task["metric"]]
    _bands(axes, task, "curve", scale)
    _log(axes, "x")
    _log(axes, "y")
    axes.set(xlabel="labels", ylabel=text)
    _legend(axes)
    return figure


def worst(task: dict[str, Any]) -> Figure:
    """The worst case against the number of labels: largest error on the test frames, and of the barrier."""
    present = [name for name in WORST if any(name in strategy for strategy in task["strategies"].values())][:1]
    barrier = any("barrier_error" in strategy for strategy in task["strategies"].values())
    panels = [*((name, *WORST[name]) for name in present), *([("barrier_error", 1e3, "barrier error, meV")] * barrier)]
    figure = Figure(figsize=(6.6, 3.0 * len(panels) + 0.6), layout="constrained")
    for axes, (name, scale, text) in zip(np.ravel(np.asarray(figure.subplots(len(panels)))), panels, strict=True):
        _bands(axes, task, name, scale)
        _log(axes, "x")
        _log(axes, "y")
        axes.set(xlabel="labels", ylabel=text)
        _legend(axes)
    return figure


def calibration(task: dict[str, Any]) -> Figure:
    """How well the spread ranks the errors, how likely it makes them, how often it holds them; over the labels."""
    panels = [("spearman", "Spearman of error and spread"), ("nll", "NLL per force component")]
    panels += [("miscalibration", "miscalibration area, scale fitted")]
    panels = [panel for panel in panels if any(panel[0] in strategy for strategy in task["strategies"].values())]
    figure = Figure(figsize=(6.6, 2.9 * len(panels) + 0.6), layout="constrained")
    for axes, (name, text) in zip(np.ravel(np.asarray(figure.subplots(len(panels)))), panels, strict=True):
        _bands(axes, task, name, 1.0)
        _log(axes, "x")
        axes.set(xlabel="labels", ylabel=text)
        _legend(axes)
    return figure


def saved(task: dict[str, Any]) -> Figure:
    """Labels saved against random selection with the same model, and their 95 % intervals."""
    intervals = {name: each["saved"] for name, each in task["strategies"].items() if each.get("saved")}
    order = sorted(intervals, key=lambda name: intervals[name][0])
    figure, axes = _axes(0.24 * len(order) + 1.2)
    values = 100 * np.array([_numbers(intervals[name]) for name in order]).reshape(-1, 3)
    for row, (value, low, high) in enumerate(values):
        color = GREEN if low > 0 else RED if high < 0 else GRAY
        axes.plot([low, high], [row, row], color=color)
        axes.plot(value, row, "o", color=color, markersize=4)
    axes.axvline(0, color="black", linewidth=1)
    axes.set_yticks(range(len(order)), order, fontsize=8)
    axes.set(xlabel="labels saved against random at equal error, %")
    axes.set_xlim(max(axes.get_xlim()[0], -200), axes.get_xlim()[1])
    return figure


def ranks(ranking: dict[str, Any]) -> Figure:
    """Average ranks, and which strategies are not told apart by them (critical difference diagram)."""
    names, rank = ranking["names"], _numbers(ranking["rank"])
    runs: Sequence[tuple[int, int]] = ranking["alike"]
    figure, axes = _axes(0.24 * len(names) + 0.12 * len(runs) + 1.3)
    places = np.arange(len(names))
    axes.plot(rank, places, "o", color=BLUE, markersize=5)
    for place, (name, value) in enumerate(zip(names, rank, strict=True)):
        axes.text(value + 0.12, place, f" {name}", va="center", fontsize=8)
    for row, (first, last) in enumerate(runs):
        height = len(names) + 0.6 * row
        axes.plot([rank[first] - 0.03, rank[last] + 0.03], [height, height], color="black", linewidth=3)
    top = -1.0
    axes.plot([rank.min(), rank.min() + ranking["critical"]], [top, top], color=RED, linewidth=2)
    axes.text(rank.min(), top - 0.3, f"critical difference {ranking['critical']:.2f}", color=RED, fontsize=8)
    axes.set(xlabel="average rank over tasks and seeds, 1 = best", ylim=(len(names) + 0.6 * len(runs), -2.2))
    axes.set_xlim(min(rank.min(), 1) - 0.2, max(rank.max() + 2.0, rank.min() + ranking["critical"] + 0.3))
    axes.set_yticks([])
    return figure


FIGURES: dict[str, tuple[str, Callable[[dict[str, Any]], Figure]]] = {
    "curves": ("Labels to accuracy", curves),
    "saved": ("Labels saved against random", saved),
    "worst": ("Worst case", worst),
    "calibration": ("Calibration over the rounds", calibration),
}


def png(draw: Callable[[dict[str, Any]], Figure], numbers: dict[str, Any]) -> bytes:
    """A figure as a PNG file."""
    with matplotlib.rc_context(STYLE):
        buffer = io.BytesIO()
        draw(numbers).savefig(buffer, format="png", dpi=130)
    return buffer.getvalue()


def embedded(picture: bytes, text: str) -> str:
    """An HTML image element that holds the picture itself."""
    return f'<img alt="{text}" src="data:image/png;base64,{base64.b64encode(picture).decode()}">'
