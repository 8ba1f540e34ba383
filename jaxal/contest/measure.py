"""How good a committee is on the test frames of a task, seed by seed. Host side, numpy, float64."""

from typing import Any

import numpy as np

from jaxal.contest.data import Data
from jaxal.core.types import Prediction
from jaxal.data.lattice import components
from jaxal.validate.calibration import calibration, normal

PER_SEED = (
    "labels",
    "failed",
    "force_rmse",
    "force_mae",
    "force_max",
    "energy_rmse",
    "energy_mae",
    "energy_max",
    "stress_rmse",
    "barrier_error",
    "spearman",
    "nll",
    "nll_constant",
    "scale",
    "auroc",
    "crps",
    "miscalibration",
    "sharpness",
)
UNITS = {
    "force_rmse": "eV/Å, per component",
    "force_mae": "eV/Å, per component",
    "force_max": "eV/Å, largest error of an atom's force vector",
    "energy_rmse": "eV/atom",
    "energy_mae": "eV/atom",
    "energy_max": "eV/atom",
    "stress_rmse": "eV/Å^3, per component",
    "barrier_error": "eV",
    "nll": "ln(eV/Å), per component",
    "crps": "eV/Å, per component; eV/atom where there are no forces",
    "sharpness": "eV/Å, per component; eV/atom where there are no forces",
}


def offsets(reference: np.ndarray, species: np.ndarray) -> np.ndarray:
    """Reference energies [s z] of structures [b n], summed over their atoms, [s b], eV."""
    real = species >= 0
    return np.where(real[None], reference[:, np.maximum(species, 0)], 0.0).sum(-1)


def measure(prediction: Prediction, reference: np.ndarray, data: Data) -> list[dict[str, Any]]:
    """The measures of each seed from what its committee says of the exam [s e ...]; None where there is none."""
    species = np.asarray(data.exam.species)
    energy = np.asarray(prediction.energy, np.float64).mean(2) + offsets(reference, species)
    measures = []
    for seed in range(len(energy)):
        rows: Any = [None if x is None else np.asarray(x, np.float64)[seed] for x in prediction]
        seed_prediction = Prediction(*rows)
        measures.append(_of_seed(seed_prediction, energy[seed], data))
    return measures


def _of_seed(prediction: Prediction, energy: np.ndarray, data: Data) -> dict[str, Any]:
    tests, answers = slice(data.tests), data.answers
    species = np.asarray(data.exam.species)[tests]
    real = species >= 0
    atoms = real.sum(-1)
    if data.forces:
        real &= np.isfinite(np.asarray(answers.force)[tests]).all(-1)
    miss = (energy - np.asarray(answers.energy))[tests] / atoms
    values: dict[str, Any] = {"energy_rmse": _rms(miss), "energy_mae": np.mean(np.abs(miss))}
    values["energy_max"] = np.max(np.abs(miss))
    if data.forces:
        members = np.asarray(prediction.force)[tests]  # [t m n 3]
        error = (members.mean(1) - np.asarray(answers.force)[tests])[real]
        length = np.linalg.norm(error, axis=-1)
        values |= {"force_rmse": _rms(error), "force_mae": np.mean(np.abs(error)), "force_max": np.max(length)}
        closed = prediction.force_spread
        spread = np.sqrt(members.var(1).sum(-1)) if closed is None else np.asarray(closed)[tests]
        quality = calibration(spread[real], length, factor=1.0)
        values |= {name: getattr(quality, name) for name in ("nll", "nll_constant", "scale")}
        law = normal(error, np.repeat(spread[real][:, None] / np.sqrt(3), 3, axis=1))  # of one component
    else:
        members = np.asarray(prediction.energy)[tests]
        closed = prediction.energy_spread
        spread = (members.std(1) if closed is None else np.asarray(closed)[tests]) / atoms
        quality = calibration(spread, np.abs(miss), factor=1.0)
        law = normal(miss, spread)
    values |= {"spearman": quality.spearman, "auroc": quality.auroc}
    values |= {"crps": law.crps, "miscalibration": law.area, "sharpness": law.sharpness}
    if data.stress:
        error = np.asarray(prediction.stress)[tests].mean(1) - np.asarray(answers.stress)[tests]
        geometry = (np.asarray(x)[tests] for x in (data.exam.cell, data.exam.periodic))
        error = components(error, *geometry)
        error = error[np.isfinite(error)]
        values["stress_rmse"] = _rms(error) if error.size else None
    if data.tests < len(energy):
        predicted, true = (x[data.tests :] for x in (energy, np.asarray(answers.energy)))
        values["barrier_error"] = abs((predicted.max() - predicted[0]) - (true.max() - true[0]))
    return {name: _number(value) for name, value in values.items()}


def _rms(error: np.ndarray) -> float:
    return float(np.sqrt(np.mean(error**2)))


def _number(value: Any) -> float | None:
    return None if value is None or not np.isfinite(value) else float(f"{value:.7g}")
