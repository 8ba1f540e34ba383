"""Tables of a report, as HTML; empty where there is nothing to show."""

import html
from typing import Any

from jaxal.core.units import GPA
from jaxal.report.metrics import Record


def errors(deviations: Record) -> str:
    """How far predictions are from test data."""
    rows = [("energy, meV/atom", deviations.get("energy"), 1e3)]
    rows.append(("energy less mean per composition", deviations.get("energy_shifted"), 1e3))
    rows.append(("force, meV/Å per component", deviations.get("force"), 1e3))
    rows += [(f"force on {name}", value, 1e3) for name, value in (deviations.get("elements") or {}).items()]
    rows.append(("stress, MPa per component", deviations.get("stress"), 1e3 / GPA))
    cells = ""
    for name, value, scale in rows:
        if isinstance(value, dict) and value.get("count"):
            numbers = "".join(
                f"<td>{value[key] * scale:.2f}</td>" if value.get(key) is not None else "<td>–</td>"
                for key in ("mae", "rmse", "largest")
            )
            cells += f"<tr><td>{html.escape(name)}</td>{numbers}<td>{value['count']}</td></tr>"
    head = "<tr><th></th><th>MAE</th><th>RMSE</th><th>largest</th><th>numbers</th></tr>"
    return f"<h2>Errors on test data</h2><table>{head}{cells}</table>" if cells else ""


def systems(measured: Record) -> str:
    """What there is of each of several systems."""
    columns = (
        ("labels", "labels", 1, ".0f"),
        ("failed", "failed", 1, ".0f"),
        ("asked, % of looks", "flagged", 100, ".1f"),
        ("rewound, %", "unphysical", 100, ".1f"),
        ("last labels, meV/Å", "rmse", 1e3, ".0f"),
        ("test forces, meV/Å", "force_rmse", 1e3, ".1f"),
        ("test energy, meV/atom", "energy_rmse", 1e3, ".2f"),
    )
    head = "".join(f"<th>{name}</th>" for name, *_ in columns)
    rows = ""
    for name, own in measured.items():
        values = [(own.get(key), scale, style) for _, key, scale, style in columns]
        cells = "".join("<td>–</td>" if v is None else f"<td>{v * scale:{style}}</td>" for v, scale, style in values)
        rows += f"<tr><td>{html.escape(name)}</td>{cells}</tr>"
    return f"<h2>Systems</h2><table><tr><th></th>{head}</tr>{rows}</table>" if rows else ""


def calibration(validation: Record) -> str:
    """What the validation says of the spread by normal laws of the most likely scale, and of the bound by element."""
    energies, components = validation.get("energies"), validation.get("components")
    elements = validation.get("elements")
    if not isinstance(energies, dict) or not isinstance(components, dict):
        return ""
    rows = [("rank correlation of spread and error", "spearman", 1), ("scale of the spread", "scale", 1)]
    rows += [("sharpness, meV/atom and meV/Å", "sharpness", 1e3), ("CRPS, meV/atom and meV/Å", "crps", 1e3)]
    rows += [("negative log-likelihood", "nll", 1), ("miscalibration area", "area", 1)]

    def cell(value: Any, scale: float) -> str:
        return f"<td>{value * scale:.3g}</td>" if isinstance(value, int | float) else "<td>–</td>"

    cells = "".join(
        f"<tr><td>{name}</td>{cell(energies.get(key), scale)}{cell(components.get(key), scale)}</tr>"
        for name, key, scale in rows
    )
    for symbol, record in (elements if isinstance(elements, dict) else {}).items():
        covered = record.get("covered") if isinstance(record, dict) else None
        cells += (
            f"<tr><td>atoms of {html.escape(str(symbol))} within the bound, %</td><td></td>{cell(covered, 100)}</tr>"
        )
    head = "<tr><th></th><th>energy</th><th>force</th></tr>"
    return f"<h2>Calibration on test data</h2><table>{head}{cells}</table>"


def atoms(energies: list[Record]) -> str:
    """Energies of isolated atoms, and those of species in the first labels, which the model's are relative to."""
    cells = ""
    for atom in energies:
        values = (atom.get("energy"), atom.get("bonded"))
        numbers = "".join(f"<td>{x:.3f}</td>" if isinstance(x, int | float) else "<td>–</td>" for x in values)
        spin = atom.get("spin") if isinstance(values[0], int | float) else "–"
        words = (html.escape(str(x)) for x in (atom.get("element"), spin, atom.get("reason") or ""))
        element, spin, reason = words
        cells += f"<tr><td>{element}</td><td>{spin}</td>{numbers}<td>{reason}</td></tr>"
    head = "<tr><th></th><th>unpaired electrons</th><th>isolated, eV</th><th>in structures, eV</th><th></th></tr>"
    return f"<h2>Reference energies</h2><table>{head}{cells}</table>" if cells else ""
