"""What a segment did, taken down in memory and in the files of the run folder."""

from typing import Any

import numpy as np

from jaxal.explore.bias_forces import ENERGY, VALUE
from jaxal.program import reports
from jaxal.program import state as states
from jaxal.program.step import CAUSES
from jaxal.run import folder
from jaxal.run.session import RECENT, Progress, Run, elapsed


def phase(run: Run, name: str, why: str = "") -> dict[str, Any]:
    """A metrics line that says a phase begins."""
    return {"kind": "phase", "wall": elapsed(run), "phase": name, "why": why}


def note(
    run: Run,
    progress: Progress,
    state: states.State,
    looks: reports.Look,
    reasons: list[str],
) -> None:
    """Takes down what a segment did, in memory and in the files."""
    config, number = run.config, looks.factor.shape[0]
    per_look = config.gate.every * run.timesteps * 1e-3  # ps, of each walker
    ps = (progress.look + 1 + np.arange(number))[:, None] * per_look
    wall = elapsed(run)
    label_count = int(np.sum(looks.walker >= 0))
    names = [run.systems[at].name for at in run.walkers]
    lines = folder.label_records(looks, wall, ps, int(state.labels) - label_count + 1, reasons, names)
    good = [line["rmse"] for line in lines if line["ok"]]
    progress.asked = int(state.labels)
    progress.failed += label_count - len(good) if run.config.label.part.kind == "oracle" else 0
    progress.true = float(np.mean(good)) if good else progress.true
    progress.flagged = float(np.mean(looks.flagged))
    estimate = looks.estimate[~looks.unphysical & np.isfinite(looks.estimate)]
    progress.estimated = float(np.mean(estimate)) if estimate.size else None
    fold = looks.fold_rmse[np.isfinite(looks.fold_rmse)]
    progress.fold = float(fold[-1]) if fold.size else progress.fold
    if progress.probing:
        progress.probes += [float(line["rmse"]) ** 2 for line in lines if line["probe"] and line["ok"]]
    counts = np.bincount(looks.cause.ravel(), minlength=len(CAUSES))[1:]
    progress.rewinds = [*progress.rewinds, counts.tolist()][-RECENT:]
    by_cause = {cause: int(n) / looks.cause.size for cause, n in zip(CAUSES[1:], counts, strict=True) if n}
    loss, heat = looks.loss[np.isfinite(looks.loss)], looks.temperature[np.isfinite(looks.temperature)]
    folder.append(
        run.directory,
        [
            *lines,
            {
                "kind": "segment",
                "wall": wall,
                "ps": ps[-1].min(),
                "labels": progress.asked,
                "failed": progress.failed,
                "looks": progress.look + number,
                "flagged": progress.flagged,
                "unphysical": float(np.mean(looks.unphysical)),
                "causes": by_cause,
                "factor": looks.factor[-1],
                "threshold": looks.threshold[-1],
                "coverage": looks.coverage[-1],
                "estimated": progress.estimated,
                "worst": float(np.max(estimate)) if estimate.size else None,
                "supported": float(np.mean(looks.supported)),
                "loss": loss[-1] if loss.size else None,
                "holdout_force_rmse": progress.fold,
                "temperature": float(np.mean(heat)) if heat.size else None,
                "busy": progress.busy,
                "idle": progress.idle,
                "systems": _by_system(run, looks, lines),
            }
            | _of_walkers(looks)
            | _of_pool(progress),
        ],
    )
    reference = np.asarray(progress.reference)
    folder.write_walkers(run.directory, looks, config.output.trajectory, progress.look, run.table, reference, names)
    progress.look += number


def _by_system(run: Run, looks: reports.Look, lines: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """What a segment did with the walkers of each system."""
    of_walker = np.array(run.walkers)
    systems: dict[str, dict[str, Any]] = {}
    for at, system in enumerate(run.systems):
        own = of_walker == at
        estimate = looks.estimate[:, own][~looks.unphysical[:, own]]
        heat = looks.temperature[:, own]
        estimate, heat = (values[np.isfinite(values)] for values in (estimate, heat))
        rmse = [line["rmse"] for line in lines if line["ok"] and line["system"] == system.name]
        systems[system.name] = {
            "labels": sum(line["system"] == system.name for line in lines),
            "flagged": folder.plain(np.mean(looks.flagged[:, own])),
            "unphysical": folder.plain(np.mean(looks.unphysical[:, own])),
            "estimated": folder.plain(np.mean(estimate)) if estimate.size else None,
            "rmse": folder.plain(np.mean(rmse)) if rmse else None,
            "temperature": folder.plain(np.mean(heat)) if heat.size else None,
        }
    return systems


def _of_walkers(looks: reports.Look) -> dict[str, Any]:
    """Mean energy of each bias, eV, and lowest and highest value of each variable and of what samplers report."""
    known = {name: values[np.isfinite(values)] for name, values in looks.report.items()}
    if not known:
        return {}
    energies = {name: float(np.mean(x)) if x.size else None for name, x in known.items() if name.startswith(ENERGY)}
    ranges = {name: [float(x.min()), float(x.max())] if x.size else None for name, x in known.items()}
    return {
        "bias": {name.removeprefix(ENERGY): energy for name, energy in energies.items()},
        "variables": {name.removeprefix(VALUE): ends for name, ends in ranges.items() if name.startswith(VALUE)},
        "sampler": {name: ends for name, ends in ranges.items() if not name.startswith((ENERGY, VALUE))},
    }


def _of_pool(progress: Progress) -> dict[str, Any]:
    """What only a pooled run knows."""
    if progress.waiting is None:
        return {}
    numbers = {"waiting": progress.waiting, "running": len(progress.begun), "dropped": progress.dropped}
    return numbers | {"worked": progress.worked, "slots": progress.slots}
