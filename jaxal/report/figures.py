"""Figures of a run, each a pure function from plain numbers to a matplotlib Figure.

The numbers come as dictionaries of lists, as they stand in report.json; None marks what is missing.
"""

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from scipy.interpolate import PchipInterpolator

from jaxal.core.units import KCAL_PER_MOL

Data = Mapping[str, Any]

# Okabe and Ito's colors, told apart also by the color-blind.
BLUE, ORANGE, GREEN, RED, GRAY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#8A8A8A"
STYLE: Any = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E6E6E6",
    "grid.linewidth": 0.7,
    "axes.edgecolor": "#444444",
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "svg.fonttype": "path",  # the same with any fonts
    "svg.hashsalt": "jaxal",  # the same file each time
}


def _numbers(values: Sequence[Any] | None) -> np.ndarray:
    return np.array([np.nan if value is None else value for value in values or ()], float)


def _present(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    use = np.isfinite(x) & np.isfinite(y)
    return x[use], y[use]


def running_median(values: np.ndarray, window: int) -> np.ndarray:
    """Median of the last `window` numbers at each place, fewer at the start."""
    return np.array([np.median(values[max(0, i + 1 - window) : i + 1]) for i in range(len(values))])


def _axes(height: float = 3.6) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(6.6, height), layout="constrained")
    return figure, figure.subplots()


def _legend(axes: Axes, **options: Any) -> None:
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=9, **options)


def _log(axes: Axes, which: str = "y") -> None:
    # Plain numbers: 50 and 200 read better than powers of ten with one tick.
    getattr(axes, f"set_{which}scale")("log")
    axis = getattr(axes, f"{which}axis")
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    low, high = sorted(getattr(axes, f"get_{which}lim")())
    subs = (1.0, 2.0, 5.0) if high / max(low, 1e-12) < 300 else (1.0,)
    axis.set_major_locator(LogLocator(subs=subs))
    axis.set_minor_formatter(NullFormatter())


def learning(data: Data) -> Figure:
    """True error of each new label before training on it, and held-out error, against the number of labels."""
    figure, axes = _axes()
    labels, error = _present(_numbers(data["label"]), 1e3 * _numbers(data["rmse"]))
    axes.plot(labels, error, ".", color=BLUE, alpha=0.45, markersize=5, label="new label, before training")
    if len(labels) >= 5:
        window = max(5, len(labels) // 10)
        axes.plot(labels, running_median(error, window), color=BLUE, label=f"median of the last {window}")
    axes.plot(
        *_present(_numbers(data["probe_label"]), 1e3 * _numbers(data["probe_rmse"])),
        "D",
        color=RED,
        markersize=5,
        label="probe (not chosen by the gate)",
    )
    held, held_error = _present(_numbers(data["holdout_label"]), 1e3 * _numbers(data["holdout_rmse"]))
    axes.plot(held, held_error, color=ORANGE, label="held-out labels")
    if len(labels) or len(held):
        _log(axes)
    axes.set(xlabel="labels", ylabel="force RMSE, meV/Å")
    _legend(axes)
    return figure


def calibration(data: Data) -> Figure:
    """Estimated against true largest force error of each label, with the line where they are equal."""
    figure, axes = _axes(4.6)
    estimated, error = _numbers(data["estimated"]), _numbers(data["error"])
    tested, tested_error = _numbers(data["test_estimated"]), _numbers(data["test_error"])
    axes.scatter(
        *_present(tested, tested_error), s=9, color=GRAY, alpha=0.6, linewidths=0, label="test data, final model",
        rasterized=len(tested) > 3000,
    )  # fmt: skip
    axes.scatter(*_present(estimated, error), s=16, color=BLUE, alpha=0.75, linewidths=0, label="labels, when chosen")
    both = np.concatenate([estimated, error, tested, tested_error])
    both = both[np.isfinite(both) & (both > 0)]
    if len(both):
        ends = np.array([both.min() / 1.3, both.max() * 1.3])
        axes.plot(ends, ends, color="black", linewidth=1.2, label="error = estimate")
        axes.fill_between(ends, ends, ends[0], color=GREEN, alpha=0.08, linewidth=0)
        axes.set(xlim=ends, ylim=ends)
        _log(axes, "x")
        _log(axes, "y")
        axes.text(0.97, 0.04, "within the bound", transform=axes.transAxes, ha="right", color=GREEN, fontsize=9)
    target = data.get("target")
    if target:
        axes.axvline(target, color=RED, linestyle="--", linewidth=1.2, label=f"wanted: {target:g} eV/Å")
    axes.set(xlabel="estimated largest force error, eV/Å", ylabel="true largest force error, eV/Å")
    _legend(axes, loc="upper left")
    return figure


def gate(data: Data) -> Figure:
    """Rate of structures flagged and their estimated error against the time of the dynamics."""
    figure = Figure(figsize=(6.6, 5.0), layout="constrained")
    rate, error = figure.subplots(2, sharex=True)
    time = _numbers(data["ps"])
    for name, color, label in (("flagged", BLUE, "flagged"), ("unphysical", RED, "unphysical")):
        values = 100 * _numbers(data[name])
        if name == "flagged" or np.nansum(values) > 0:
            rate.plot(*_present(time, values), color=color, marker=".", markersize=4, label=label)
    rate.set(ylabel="of the looks, %")
    rate.set_ylim(bottom=0)
    error.plot(*_present(time, _numbers(data["worst"])), color=GRAY, linewidth=1.2, label="largest of all walkers")
    error.plot(*_present(time, _numbers(data["estimated"])), color=BLUE, marker=".", markersize=4, label="mean")
    threshold = _numbers(data.get("threshold"))
    if np.isfinite(threshold).any() and np.nanmax(threshold) > np.nanmin(threshold):  # of a gate that moves it
        error.plot(*_present(time, threshold), color=ORANGE, linewidth=1.2, label="threshold")
    if data.get("target"):
        error.axhline(
            data["target"], color=RED, linestyle="--", linewidth=1.2, label=f"wanted: {data['target']:g} eV/Å"
        )
    if error.lines and any(len(np.asarray(line.get_xdata())) for line in error.lines):
        _log(error)
    error.set(xlabel="dynamics of each walker, ps", ylabel="estimated error, eV/Å")
    _legend(rate)
    _legend(error)
    return figure


def path(data: Data) -> Figure:
    """Energy along the reaction path of the model and of the reference, with their barriers."""
    figure, axes = _axes()
    for name, color, marker in (("reference", "black", "o"), ("model", BLUE, "s")):
        curve = data.get(name)
        if not curve:
            continue
        coordinate, energy = _numbers(curve["coordinate"]), _numbers(curve["energies"]) / KCAL_PER_MOL
        # Smooth through the images without overshooting them.
        if len(coordinate) > 2 and np.all(np.diff(coordinate) > 0):
            fine = np.linspace(coordinate[0], coordinate[-1], 200)
            axes.plot(fine, PchipInterpolator(coordinate, energy)(fine), color=color, linewidth=1.3)
        label = f"{curve.get('name', name)}: {curve['energy'] / KCAL_PER_MOL:.2f} kcal/mol"
        axes.plot(coordinate, energy, marker, color=color, markersize=5, linestyle="", label=label)
    axes.set(xlabel="length of the path, Å", ylabel="energy, kcal/mol")
    axes.margins(y=0.15)
    _legend(axes, loc="upper left")
    return figure


def labels(data: Data) -> Figure:
    """Number of labels against wall time, with the phases of the run."""
    figure, axes = _axes(3.2)
    wall, count = _present(_numbers(data["wall"]) / 60, _numbers(data["count"]))
    axes.step(wall, count, where="post", color=BLUE, label="labels")
    failed, failed_count = _present(_numbers(data["failed_wall"]) / 60, _numbers(data["failed_count"]))
    axes.plot(failed, failed_count, "x", color=RED, label="failed calculation")
    top = 1.15 * axes.get_ylim()[1]
    axes.set_ylim(0, top)
    last = -np.inf
    for phase in data["phases"]:
        at = phase["wall"] / 60
        axes.axvline(at, color=GRAY, linewidth=0.8, linestyle=":")
        # Names of phases that follow at once would lie on each other.
        span = max(axes.get_xlim()[1] - axes.get_xlim()[0], 1e-9)
        if (at - last) / span > 0.03:
            axes.text(
                at, top * 0.98, f" {phase['phase']}", rotation=90, va="top", ha="left", fontsize=8, color="#555555"
            )
            last = at
    axes.set(xlabel="wall time, min", ylabel="labels")
    _legend(axes, loc="lower right")
    return figure


FIGURES: dict[str, tuple[str, Callable[[Data], Figure]]] = {
    "learning": ("Learning curve", learning),
    "calibration": ("Error against spread", calibration),
    "gate": ("Gate", gate),
    "path": ("Reaction path", path),
    "labels": ("Labels over time", labels),
}


def render(name: str, data: Data, kind: str = "svg") -> bytes:
    """The named figure as an SVG or PNG file."""
    with matplotlib.rc_context(STYLE):
        buffer = io.BytesIO()
        FIGURES[name][1](data).savefig(buffer, format=kind, dpi=130, metadata={"Date": None} if kind == "svg" else None)
    return buffer.getvalue()


def embedded(name: str, data: Data) -> str:
    """An HTML image element that holds the named figure itself."""
    source = base64.b64encode(render(name, data)).decode()
    return f'<img alt="{FIGURES[name][0]}" src="data:image/svg+xml;base64,{source}">'
