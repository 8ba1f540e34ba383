"""The numbers of a contest's page: curves, leaderboard and ranks from the results, each with its interval."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxal.contest import statistics
from jaxal.contest.measure import UNITS
from jaxal.contest.schema import Contest, Entrant, Task, baseline
from jaxal.contest.statistics import Interval

Results = dict[tuple[str, str], list[dict[str, Any]]]
OVER_ROUNDS = ("force_max", "energy_max", "stress_rmse", "barrier_error", "energy_rmse")
SIGNED = ("spearman", "nll", "auroc", "miscalibration")  # over the rounds too, with arithmetic means
CHOICE = ("predict_s", "walk_s", "features_s", "select_s")  # seconds that choosing takes
SECONDS = (*CHOICE, "label_s", "train_s", "test_s")


def summary(contest: Contest, entered: Sequence[Entrant], results: Results) -> dict[str, Any]:
    """Everything the page says, as JSON knows it. Only finished strategies are compared."""
    tasks = {}
    for name, task in contest.tasks.items():
        entrants = [entrant for entrant in entered if finished(results.get((name, entrant.name), []), task)]
        if entrants:
            tasks[name] = _task(task, name, entrants, entered, results)
    return {"tasks": tasks, "ranking": _ranking(tasks)}


def finished(records: Sequence[dict[str, Any]], task: Task) -> bool:
    """Whether a strategy has come through all rounds."""
    return bool(records) and records[-1]["round"] == len(task.budgets) - 1


def table(records: Sequence[dict[str, Any]], name: str) -> np.ndarray:
    """One measure of a strategy's results as [s r]; NaN where there is none."""
    seeds, rounds = (1 + max(record[key] for record in records) for key in ("seed", "round"))
    values = np.full((seeds, rounds), np.nan)
    for record in records:
        if record.get(name) is not None:
            values[record["seed"], record["round"]] = record[name]
    return values


def metric_of(task: Task, records: Sequence[dict[str, Any]]) -> str:
    """The measure by which a task ranks."""
    if task.metric != "auto":
        return f"{task.metric}_rmse"
    return "energy_rmse" if records[0].get("force_rmse") is None else "force_rmse"


def _task(
    task: Task, name: str, entrants: list[Entrant], entered: Sequence[Entrant], results: Results
) -> dict[str, Any]:
    metric = metric_of(task, results[name, entrants[0].name])
    strategies = {}
    for entrant in entrants:
        own = baseline(entrant, entered)
        against = results[name, own.name] if own in entrants else None
        strategies[entrant.name] = _strategy(results[name, entrant.name], metric, own.name, against)
    return {"metric": metric, "unit": UNITS[metric], "budgets": list(task.budgets), "strategies": strategies}


def _strategy(
    records: list[dict[str, Any]], metric: str, own: str, against: list[dict[str, Any]] | None
) -> dict[str, Any]:
    labels, error = table(records, "labels"), table(records, metric)
    numbers: dict[str, Any] = {
        "labels": [float(x) for x in labels.mean(0)],
        "curve": [triple(statistics.geometric_interval(x)) for x in error.T],
        "area": triple(Interval(*map(float, np.exp(statistics.mean_interval(statistics.area(labels, error)))))),
        "areas": [float(x) for x in statistics.area(labels, error)],
        "baseline": own,
        "failed": float(table(records, "failed")[:, -1].mean()),
        "seconds": {key: _seconds(records, key) for key in SECONDS},
    }
    # the median round: in its first a model's programs are compiled
    rounds = [sum(r.get(key, 0.0) for key in CHOICE) for r in records if r["seed"] == 0 and r["round"] > 0]
    numbers["choice_s"] = float(np.median(rounds))
    numbers["wall_s"] = sum(numbers["seconds"].values())
    for name in OVER_ROUNDS + SIGNED:
        values = table(records, name)
        if np.isfinite(values).any():
            mean = statistics.mean_interval if name in SIGNED else statistics.geometric_interval
            numbers[name] = [triple(mean(x)) for x in values.T]
    if against is not None and against is not records:
        other, other_labels = table(against, metric), table(against, "labels")
        numbers["saved"] = triple(statistics.saved(labels, error, other_labels, other))
        numbers["final_ratio"] = triple(statistics.ratio(error[:, -1], other[:, -1]))
        for name in ("force_max", "energy_max", "barrier_error"):
            if name in numbers and np.isfinite(table(records, name)).any():
                numbers[f"{name}_ratio"] = triple(
                    statistics.ratio(table(records, name)[:, -1], table(against, name)[:, -1])
                )
    return numbers


def _seconds(records: list[dict[str, Any]], name: str) -> float:
    """Of all rounds; a round's seconds are of all its seeds together."""
    return float(sum(record.get(name, 0.0) for record in records if record["seed"] == 0))


def triple(interval: Interval) -> list[float | None]:
    """An interval as JSON: value, low, high."""
    return [float(f"{x:.6g}") if np.isfinite(x) else None for x in interval]


def _ranking(tasks: dict[str, Any]) -> dict[str, Any] | None:
    """Average ranks by area over all tasks and seeds, of the strategies that finished all tasks."""
    names = list(next(iter(tasks.values()), {"strategies": {}})["strategies"])
    names = [name for name in names if all(name in task["strategies"] for task in tasks.values())]
    if len(names) < 2:
        return None
    score = np.concatenate(
        [np.stack([task["strategies"][name]["areas"] for name in names], 1) for task in tasks.values()]
    )
    ranking = statistics.ranking(score)
    order = np.argsort(ranking.rank, kind="stable")
    return {
        "names": [names[row] for row in order],
        "rank": [float(f"{ranking.rank[row]:.4g}") for row in order],
        "critical": ranking.critical,
        "p": ranking.p if np.isfinite(ranking.p) else None,
        "blocks": ranking.blocks,
        "alike": statistics.cliques(ranking.rank, ranking.critical),
    }
