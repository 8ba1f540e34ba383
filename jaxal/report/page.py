"""The report of a run: one HTML file that needs no other, and the numbers of its figures as JSON.

Reads only files of the run folder; whatever is missing or half written, as in a run that goes on, is left out.
"""

import html
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from jaxal.core.types import InputError
from jaxal.core.units import KCAL_PER_MOL
from jaxal.report import figures, metrics, tables
from jaxal.report.metrics import METRICS, Record, read_metrics

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; background: #fff; max-width: 60rem; margin: 2rem auto;
       padding: 0 1rem; }
h1 { font-size: 1.6rem; margin: 0; } h2 { font-size: 1.15rem; margin: 2.2rem 0 .6rem; }
.sub { color: #666; margin: .2rem 0 1.4rem; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(11rem, 1fr)); gap: .7rem; }
.tile { border: 1px solid #ddd; border-radius: .4rem; padding: .6rem .8rem; }
.tile b { display: block; font-size: 1.25rem; } .tile span { color: #666; font-size: .85rem; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(26rem, 1fr)); gap: 1.2rem; }
figure { margin: 0; } figure img { width: 100%; height: auto; } figcaption { color: #666; font-size: .85rem; }
table { border-collapse: collapse; font-size: .9rem; } td, th { text-align: right; padding: .15rem .8rem .15rem 0; }
td:first-child, th:first-child { text-align: left; } th { border-bottom: 1px solid #bbb; font-weight: 600; }
pre { background: #f6f6f6; border-radius: .4rem; padding: .8rem; overflow-x: auto; font-size: .82rem; }
@media (max-width: 30rem) { .plots { grid-template-columns: 1fr; } }
"""

BOUND = ("factor", "coverage", "count", "failed", "rmse")  # what a run notes of it

CAPTIONS = {
    "learning": "Force error of the committee mean on each new label before it was trained on, so on data it had "
    "never seen, and on labels held out from training.",
    "calibration": "What the committee's spread said of the largest force error of a structure, against the truth. "
    "The gate keeps most points under the line.",
    "gate": "Above: how many of the looks at a walker asked for a label. Below: the error the spread stands for.",
    "path": "Energy along the minimum-energy path by climbing-image elastic bands, each on its own potential.",
    "labels": "Reference calculations against wall time.",
}


def _read(path: Path, parse: Any) -> Record:
    try:
        content = parse(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return content if isinstance(content, dict) else {}


def _column(records: list[Record], name: str) -> list[Any]:
    return [record.get(name) for record in records]


def _inside(record: Record, *names: str) -> Any:
    value: Any = record
    for name in names:
        value = value.get(name) if isinstance(value, dict) else None
    return value


def gather(directory: Path) -> Record:
    """The numbers of the summary and of each figure that the run folder has data for."""
    records = read_metrics(directory / METRICS)
    config = _read(directory / "config.yaml", yaml.safe_load)
    validation = _read(directory / "validate.json", json.loads)
    segments = [r for r in records if r.get("kind") == "segment"]
    attempts = [r for r in records if r.get("kind") == "label"]
    phases = [r for r in records if r.get("kind") == "phase" and isinstance(r.get("wall"), int | float)]
    good = [r for r in attempts if r.get("ok", True)]
    chosen, probes = [r for r in good if not r.get("probe")], [r for r in good if r.get("probe")]
    failed = [r for r in attempts if not r.get("ok", True)]
    target = _inside(config, "gate", "target_error")
    target = target if isinstance(target, int | float) else None
    count, running = [], 0
    for record in attempts:
        running += bool(record.get("ok", True))
        count.append(running)
    plots: Record = {
        "learning": {
            "label": _column(chosen, "label"),
            "rmse": _column(chosen, "rmse"),
            "probe_label": _column(probes, "label"),
            "probe_rmse": _column(probes, "rmse"),
            "holdout_label": _column(segments, "labels"),
            "holdout_rmse": _column(segments, "holdout_force_rmse"),
        },
        "calibration": {
            "estimated": _column(good, "estimated"),
            "error": _column(good, "error"),
            "test_estimated": validation.get("estimated") or [],
            "test_error": validation.get("worst") or [],
            "target": target,
        },
        "gate": {
            name: _column(segments, name)
            for name in ("ps", "flagged", "unphysical", "estimated", "worst", "threshold", "coverage")
        }
        | {"target": target},
        "path": {
            name: _inside(validation, "barrier", name)
            for name in ("model", "reference")
            if _inside(validation, "barrier", name, "energies")
        },
        "labels": {
            "wall": _column(attempts, "wall"),
            "count": count,
            "failed_wall": _column(failed, "wall"),
            "failed_count": [count[i] for i, r in enumerate(attempts) if not r.get("ok", True)],
            "phases": phases,
        },
    }
    needed = {
        "learning": attempts or segments,
        "calibration": good or plots["calibration"]["test_error"],
        "gate": segments,
        "path": plots["path"],
        "labels": attempts,
    }
    return {
        "title": str(config.get("name") or directory.resolve().name),
        "system": config.get("system") or config.get("systems"),
        "systems": _by_system(attempts, segments, validation),
        "summary": _summary(records, segments, good, failed, phases, validation, config, directory),
        "figures": {name: plots[name] for name, there in needed.items() if there},
        "atoms": [r for r in records if r.get("kind") == "atom"],
        "validation": validation,
        "versions": _read(directory / "versions.json", json.loads),
        "config": config,
    }


def _summary(
    records: list[Record],
    segments: list[Record],
    good: list[Record],
    failed: list[Record],
    phases: list[Record],
    validation: Record,
    config: Record,
    directory: Path,
) -> Record:
    walls = [r["wall"] for r in records if isinstance(r.get("wall"), int | float)]
    holdout = [v for v in _column(segments, "holdout_force_rmse") if v is not None]
    bound = next((r for r in reversed(records) if r.get("kind") == "calibration"), {})
    model, reference = (_inside(validation, "barrier", name, "energy") for name in ("model", "reference"))
    miss = _inside(config, "gate", "miss_rate")
    return {
        "phase": phases[-1].get("phase") if phases else None,
        "why": phases[-1].get("why") if phases else None,
        "wall": max(walls, default=None),  # s
        "labels": len(good),
        "failed": dict(Counter(str(r.get("reason") or "failed") for r in failed)),
        "training_structures": _count_frames(directory / "training.xyz"),
        "ps": segments[-1].get("ps") if segments else None,
        **metrics.shares(segments[-1] if segments else {}),
        "rewinds": _rewinds(segments),
        "coverage": segments[-1].get("coverage") if segments else None,
        "coverage_wanted": 1 - miss if isinstance(miss, int | float) else None,
        "holdout_force_rmse": holdout[-1] if holdout else None,  # eV/Å
        "bound": {name: bound.get(name) for name in BOUND} if bound else None,
        "task": metrics.answers(records),
        "within_bound": _inside(validation, "within"),  # of the supported structures
        "supported": _inside(validation, "support"),
        "force_rmse": _inside(validation, "errors", "force", "rmse"),  # eV/Å
        "energy_rmse": _inside(validation, "errors", "energy", "rmse"),  # eV/atom
        "energy_shifted_rmse": _inside(validation, "errors", "energy_shifted", "rmse"),  # eV/atom
        "barrier": model,  # eV
        "barrier_reference": reference,  # eV
        "drift": _inside(validation, "stability", "drift"),  # meV/atom/ps, of each start
        "intact": _inside(validation, "stability", "intact"),
    }


def _by_system(attempts: list[Record], segments: list[Record], validation: Record) -> Record:
    """What there is of each of several systems: labels, how many looks asked for one or were rewinds, errors."""
    last = _inside(segments[-1] if segments else {}, "systems")
    names = list(last) if isinstance(last, dict) else []
    systems: Record = {}
    for name in names if len(names) > 1 else []:
        own = [record for record in attempts if record.get("system") == name]
        rates = [_inside(segment, "systems", name) or {} for segment in segments]
        squares = [r["rmse"] ** 2 for r in own[-20:] if r.get("ok") and isinstance(r.get("rmse"), int | float)]
        errors = _inside(validation, "systems", name) or {}
        systems[name] = {
            "labels": len(own),
            "failed": sum(not record.get("ok", True) for record in own),
            **{which: _mean([rate.get(which) for rate in rates]) for which in ("flagged", "unphysical")},
            "rmse": (sum(squares) / len(squares)) ** 0.5 if squares else None,
            "force_rmse": _inside(errors, "force", "rmse"),
            "energy_rmse": _inside(errors, "energy", "rmse"),
        }
    return systems


def _mean(values: list[Any]) -> float | None:
    numbers = [value for value in values if isinstance(value, int | float)]
    return sum(numbers) / len(numbers) if numbers else None


def _rewinds(segments: list[Record]) -> Record:
    """Of all looks at walkers, the fractions that were rewinds from frames that are not physical, by cause."""
    causes = [r["causes"] for r in segments if isinstance(r.get("causes"), dict)]
    total: Counter[str] = Counter()
    for record in causes:
        total.update({name: part for name, part in record.items() if isinstance(part, int | float)})
    return {name: part / len(causes) for name, part in total.items()}


def _bound_tiles(summary: Record, show: Callable[..., str | None]) -> list[tuple[str, str | None]]:
    """What the model's bound is worth: where it comes from, and how often the test data are within it."""
    bound = summary["bound"]
    if bound is None:
        return []
    nominal = show(bound["coverage"], ".0f", 100)
    return [
        (
            f"bound on force errors, × spread × novelty: kept with {nominal} %, from {bound['count']} random frames"
            if nominal is not None
            else "bound on force errors: too few random frames for one",
            show(bound["factor"], ".2f") if nominal is not None else "none",
        ),
        ("force RMSE, random frames of the dynamics, meV/Å", show(bound["rmse"], ".1f", 1e3)),
        ("test data supported by the training set, %", show(summary["supported"], ".1f", 100)),
        ("supported test data within the bound, %", show(summary["within_bound"], ".1f", 100)),
    ]


def _task_tiles(summary: Record) -> list[tuple[str, str]]:
    """What the task of the run came to."""
    tiles = []
    for name, answer in summary["task"].items():
        system = f", {name}" if len(summary["task"]) > 1 else ""
        state = "done" if answer["satisfied"] else "its labels are spent: more would change it"
        tiles.append((f"task{system}: {state}, {answer['labels']} labels", str(answer["text"])))
    return tiles


def _count_frames(path: Path) -> int | None:
    """Structures in an extended-XYZ file, without parsing the atoms."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        number = frames = 0
        while number < len(lines) and lines[number].strip():
            number += int(lines[number]) + 2
            frames += number <= len(lines)
        return frames
    except (OSError, ValueError):
        return None


def _tiles(summary: Record) -> list[tuple[str, str]]:
    def show(value: Any, style: str, scale: float = 1.0) -> str | None:
        return f"{value * scale:{style}}" if isinstance(value, int | float) else None

    barrier, reference = show(summary["barrier"], ".2f", 1 / KCAL_PER_MOL), summary["barrier_reference"]
    failed = sum(summary["failed"].values())
    drift, target = summary["drift"], summary["coverage_wanted"]
    drift = max(map(abs, drift)) if isinstance(drift, list) and drift and None not in drift else None
    intact = summary["intact"]
    rows = [
        ("state", summary["phase"]),
        ("wall time, min", show(summary["wall"], ".1f", 1 / 60)),
        ("labels" + (f" ({failed} failed)" if failed else ""), show(summary["labels"] or None, ".0f")),
        ("dynamics of each walker, ps", show(summary["ps"], ".1f")),
        (
            "labels within their estimated error, %" + (f" (wanted {100 * target:g})" if target is not None else ""),
            show(summary["coverage"], ".1f", 100),
        ),
        *(
            (f"looks at walkers that were {name}, %", show(part, ".1f", 100))
            for name, part in summary["rewinds"].items()
        ),
        *_task_tiles(summary),
        *_bound_tiles(summary, show),
        ("device idle while exploring, %", show(summary["device_idle"], ".1f", 100)),
        ("workers idle while exploring, %", show(summary["workers_idle"], ".1f", 100)),
        ("force RMSE, test data, meV/Å", show(summary["force_rmse"], ".1f", 1e3)),
        ("energy RMSE, test data, meV/atom", show(summary["energy_rmse"], ".2f", 1e3)),
        (
            "force RMSE, held-out labels, meV/Å",
            None if summary["force_rmse"] else show(summary["holdout_force_rmse"], ".1f", 1e3),
        ),
        (
            "barrier, kcal/mol" + (f" (reference {reference / KCAL_PER_MOL:.2f})" if reference is not None else ""),
            barrier,
        ),
        ("largest drift, meV/atom/ps", show(drift, ".3f")),
        ("trajectories intact", f"{sum(intact)} of {len(intact)}" if isinstance(intact, list) and intact else None),
    ]
    return [(name, value) for name, value in rows if value]


def _page(data: Record) -> str:
    escape = html.escape
    summary = data["summary"]
    system = data["system"]
    about = ", ".join(f"{k} {v}" for k, v in system.items()) if isinstance(system, dict) else str(system or "")
    about = ", ".join(data["systems"]) or about
    tiles = "".join(
        f'<div class="tile"><b>{escape(str(value))}</b><span>{escape(name)}</span></div>'
        for name, value in _tiles(summary)
    )
    plots = "".join(
        f"<figure><h2>{escape(figures.FIGURES[name][0])}</h2>{figures.embedded(name, numbers)}"
        f"<figcaption>{escape(CAPTIONS[name])}</figcaption></figure>"
        for name, numbers in data["figures"].items()
    )
    why = f"<p>{escape(str(summary['why']))}</p>" if summary["why"] else ""
    failed = "".join(f"<tr><td>{escape(k)}</td><td>{v}</td></tr>" for k, v in summary["failed"].items())
    versions = "".join(
        f"<tr><td>{escape(str(k))}</td><td>{escape(str(v))}</td></tr>" for k, v in data["versions"].items()
    )
    settings = yaml.safe_dump(data["config"], sort_keys=False, allow_unicode=True) if data["config"] else ""
    sections = [
        f'<h1>{escape(data["title"])}</h1><div class="sub">{escape(about)}</div>',
        f'<div class="tiles">{tiles}</div>{why}',
        f'<div class="plots">{plots}</div>',
        tables.systems(data["systems"]),
        tables.errors(_inside(data["validation"], "errors") or {}),
        tables.calibration(data["validation"]),
        tables.atoms(data["atoms"]),
        f"<h2>Failed calculations</h2><table>{failed}</table>" if failed else "",
        f"<h2>Settings</h2><pre>{escape(settings)}</pre>" if settings else "",
        f"<h2>Versions</h2><table>{versions}</table>" if versions else "",
    ]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(data['title'])}</title><style>{STYLE}</style></head><body>{''.join(sections)}</body></html>\n"
    )


def write(directory: str | Path) -> Path:
    """Write report.html and report.json into the run folder; returns the path of the HTML file.

    Raises InputError where there is no such folder.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise InputError(f"{directory}: is no folder; give the folder of a run")
    data = gather(directory)
    (directory / "report.json").write_text(json.dumps(data, indent=1, default=str), encoding="utf-8")
    page = directory / "report.html"
    page.write_text(_page(data), encoding="utf-8")
    return page
