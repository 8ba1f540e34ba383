"""What a contest leaves behind: one HTML page, its pictures as PNG, its numbers as JSON and CSV."""

import csv
import html
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxal.contest import figures
from jaxal.contest.schema import Contest, Entrant
from jaxal.contest.summary import SECONDS, Results, finished, summary
from jaxal.report.page import STYLE

PAGE, SUMMARY, CSV, LEADERS = "contest.html", "summary.json", "results.csv", "leaderboard.csv"
ENOUGH = 5  # seeds; the tails of the bootstrap lie beyond all resamples of fewer
WIDE = "body { max-width: 76rem; } td, th { white-space: nowrap; }"
CAPTIONS = {
    "curves": "Error on the test frames, geometric mean over the seeds; bands are 95 % intervals of it (Student). "
    "Gray: the other strategies.",
    "saved": "Fraction of the labels that random selection with the same model needs for the same error and the "
    "strategy does not; 95 % bootstrap intervals, paired over the seeds. Gray intervals hold zero: nothing is shown. "
    "Each interval is for itself: of twenty strategies that save nothing one would seem to save something.",
    "worst": "Largest error of any test frame, and of the barrier along the path where the task has one.",
    "calibration": "Rank correlation of spread and true error on the test frames, and the negative log-likelihood of "
    "the errors with the best scale of the spread.",
}


def write(folder: Path, contest: Contest, entered: Sequence[Entrant], results: Results) -> Path:
    """Writes page, pictures and tables of the results there are; returns the path of the page."""
    numbers = summary(contest, entered, results)
    (folder / SUMMARY).write_text(json.dumps(numbers, indent=1) + "\n", encoding="utf-8")
    (folder / CSV).write_text(_csv(results), encoding="utf-8")
    rows = [(name, *row) for name, task in numbers["tasks"].items() for row in leaderboard(task)]
    (folder / LEADERS).write_text(_lines([("task", *HEAD), *rows]), encoding="utf-8")
    path = folder / PAGE
    path.write_text(_page(folder, contest, entered, results, numbers), encoding="utf-8")
    return path


HEAD = (
    "strategy",
    "area",
    "final error",
    "labels saved, %",
    "baseline",
    "worst case",
    "barrier error, meV",
    "Spearman",
    "choice, s a round",
    "all, s",
)


def leaderboard(task: dict[str, Any]) -> list[tuple[str, ...]]:
    """The rows of a task's table under `HEAD`, the smallest area first; intervals in brackets."""
    rows = []
    strategies = task["strategies"]
    scale = 1e3
    for name in sorted(strategies, key=lambda each: strategies[each]["area"][0]):
        strategy = strategies[name]
        worst, unit = (strategy["force_max"][-1], 1.0) if "force_max" in strategy else (strategy["energy_max"][-1], 1e3)
        rows.append(
            (
                name,
                shown(strategy["area"], scale),
                shown(strategy["curve"][-1], scale),
                shown(strategy["saved"], 100, 0) if "saved" in strategy else "",
                strategy["baseline"] if strategy["baseline"] != name else "",
                shown(worst, unit, 2),
                shown(strategy["barrier_error"][-1], 1e3) if "barrier_error" in strategy else "",
                shown(strategy["spearman"][-1], 1.0, 2) if "spearman" in strategy else "",
                f"{strategy['choice_s']:.2f}",
                f"{strategy['wall_s']:.0f}",
            )
        )
    return rows


def shown(interval: Sequence[float | None], scale: float = 1.0, digits: int = 1) -> str:
    """An interval as text, `value [low, high]`."""
    value, low, high = (None if x is None else f"{scale * x:.{digits}f}" for x in interval)
    if value is None:
        return "–"
    return f"{value} [{low}, {high}]" if low is not None else f"{value} [no interval]"


def _lines(rows: Sequence[Sequence[Any]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def _csv(results: Results) -> str:
    records = [record for history in results.values() for record in history]
    names = list(dict.fromkeys(name for record in records for name in record))
    return _lines([names, *(["" if record.get(n) is None else record[n] for n in names] for record in records)])


def _page(folder: Path, contest: Contest, entered: Sequence[Entrant], results: Results, numbers: dict[str, Any]) -> str:
    escape = html.escape
    total = len(contest.tasks) * len(entered)
    count = sum(
        finished(results.get((name, entrant.name), []), task)
        for name, task in contest.tasks.items()
        for entrant in entered
    )
    seconds = sum(r.get(k, 0.0) for each in results.values() for r in each if r["seed"] == 0 for k in SECONDS)
    tiles = [
        (f"{count} of {total}", "strategies finished, over all tasks"),
        (str(contest.seeds), "seeds"),
        (f"{seconds / 60:.1f}", "minutes of computation"),
    ]
    sections = [
        f"<h1>{escape(folder.resolve().name)}</h1>"
        '<div class="sub">Strategies of choosing labels, on the same frames, first labels, initial weights and '
        "batches. What a strategy saves is measured against random selection with the same model.</div>",
        '<div class="tiles">'
        + "".join(f'<div class="tile"><b>{a}</b><span>{b}</span></div>' for a, b in tiles)
        + "</div>",
    ]
    if contest.seeds < ENOUGH:
        sections.append(
            f"<p><b>{contest.seeds} seeds are few</b>: bootstrap intervals of fewer than {ENOUGH} are too narrow.</p>"
        )
    if numbers["ranking"]:
        sections.append(_ranking(folder, numbers["ranking"]))
    for name, task in numbers["tasks"].items():
        sections.append(_task(folder, name, task))
    strategies = "".join(
        f"<tr><td>{escape(entrant.name)}</td><td>{escape(entrant.model.uncertainty.name)}</td>"
        f"<td>{entrant.model.committee.kind} {entrant.model.committee.members}</td>"
        f"<td>{escape(entrant.score.name)}</td><td>{escape(entrant.kernel.name)}</td><td>{escape(entrant.selection)}</td></tr>"
        for entrant in entered
    )
    head = "".join(f"<th>{x}</th>" for x in ("strategy", "uncertainty", "committee", "score", "kernel", "selection"))
    sections.append(f"<h2>Strategies</h2><table><tr>{head}</tr>{strategies}</table>")
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(folder.resolve().name)}</title><style>{STYLE}{WIDE}</style></head>"
        f"<body>{''.join(sections)}</body></html>\n"
    )


def _ranking(folder: Path, ranking: dict[str, Any]) -> str:
    picture = figures.png(figures.ranks, ranking)
    (folder / "ranking.png").write_bytes(picture)
    p = f"p = {ranking['p']:.2g}" if ranking["p"] is not None else "no test with two strategies"
    caption = (
        f"Average rank by area under the curve over {ranking['blocks']} pairs of task and seed (Friedman's test: {p}). "
        "Black bars join strategies that Nemenyi's test at 5 % does not tell apart (Demsar 2006). Seeds of one task "
        "share its frames: of other frames and systems the ranks say less than their number suggests."
    )
    image = figures.embedded(picture, "Ranking")
    return f'<h2>Ranking</h2><div class="plots"><figure>{image}<figcaption>{caption}</figcaption></figure></div>'


def _task(folder: Path, name: str, task: dict[str, Any]) -> str:
    plots = ""
    for kind, (title, draw) in figures.FIGURES.items():
        if kind == "saved" and not any("saved" in strategy for strategy in task["strategies"].values()):
            continue
        picture = figures.png(draw, task)
        (folder / f"{kind}_{name}.png").write_bytes(picture)
        image = figures.embedded(picture, title)
        plots += f"<figure><h2>{title}</h2>{image}<figcaption>{CAPTIONS[kind]}</figcaption></figure>"
    head = "".join(f"<th>{html.escape(word)}</th>" for word in HEAD)
    rows = "".join(
        "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in leaderboard(task)
    )
    unit = "meV/Å" if task["metric"] == "force_rmse" else "meV/atom"
    about = (
        f"Area: {task['metric'].replace('_', ' ')} in {unit}, geometric mean over ln(labels); final error: with "
        f"{task['budgets'][-1]} labels; both with 95 % intervals over the seeds. Worst case: "
        f"{'largest force error, eV/Å' if unit == 'meV/Å' else 'largest energy error, meV/atom'}. Seconds are "
        "of all seeds; the first strategy of a model pays for its compilation."
    )
    return (
        f"<h1>{html.escape(name)}</h1><table><tr>{head}</tr>{rows}</table>"
        f'<p class="sub">{about}</p><div class="plots">{plots}</div>'
    )
