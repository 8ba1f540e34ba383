"""`jaxal validate`: a model against labeled structures. Errors, per element too, and whether the spread tells them."""

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import ase
import jax
import numpy as np
from ase.data import chemical_symbols

from jaxal.core.errors import InputError
from jaxal.core.types import Label, Prediction, Structure
from jaxal.core.units import GPA
from jaxal.data import dataset
from jaxal.data.electrons import formula
from jaxal.data.frames import Frame, with_electrons
from jaxal.data.structure import from_frames, labels_of
from jaxal.deploy import model as models
from jaxal.uncertainty.bound import bounds, factors
from jaxal.validate.calibration import Calibration, Covered, Normal, calibration, coverage, coverage_by, normal
from jaxal.validate.errors import Errors, Statistic, atom_errors, compare

# Structures of about as many atoms go through the predictor together.
ATOMS_AT_ONCE = 512


class Validation(NamedTuple):
    """A model measured on labeled structures.

    `estimated` is the model's bound on the largest force error of a structure: NaN where the model has none, infinite
    where the structure is not supported. `worst` is that error itself. `nominal` is the probability with which the
    bound is kept for structures like those that calibrated it, NaN without one; `within` is the fraction of supported
    structures whose error is within the bound.
    """

    model: str
    data: str
    errors: Errors
    structures: Calibration  # of the largest spread and error of each structure
    atoms: Calibration
    nominal: float
    within: float
    within_error: float  # binomial standard error
    support: float  # fraction of the structures that are supported; NaN where the model does not know
    supported: np.ndarray  # [b] bool
    estimated: np.ndarray  # [b] eV/Å
    worst: np.ndarray  # [b] eV/Å
    components: Normal  # of the components of the forces, eV/Å
    energies: Normal  # eV per atom
    elements: dict[str, Covered]  # of the atoms, by symbol
    systems: dict[str, Errors]  # by name of the system, or by composition and electrons; empty for a single one


class Predicted(NamedTuple):
    """Committee mean and spread of many structures, numpy, float64."""

    label: Label  # energies with the reference energies of the atoms
    spread: np.ndarray  # [b n] eV/Å
    energy_spread: np.ndarray  # [b] eV
    novelty: np.ndarray  # [b] above 1 is not supported; NaN where the model does not know


def predict_all(model: models.Model, structure: Structure) -> Predicted:
    """Predict a batch [b n ...] in parts of equal shape, in the model's precision."""
    with jax.enable_x64(model.precision == "float64"):
        return _predict_all(model, structure, models.predictor(model))


def _predict_all(model: models.Model, structure: Structure, predict: Callable[[Structure], Prediction]) -> Predicted:
    total, size = structure.species.shape
    part = max(1, min(total, ATOMS_AT_ONCE // size))
    labels, spreads, energy_spreads, novelties = [], [], [], []
    for first in range(0, total, part):
        rows = np.arange(first, first + part) % total  # the last part is filled up: one shape, one program
        prediction = predict(Structure(*(leaf[rows] for leaf in structure)))
        energy, force, stress = (np.asarray(value, np.float64) for value in prediction[:3])
        used = slice(0, min(part, total - first))
        labels.append((energy.mean(axis=1)[used], force.mean(axis=1)[used], stress.mean(axis=1)[used]))
        # those of the method in closed form, else those of the members
        own, each = (
            None if x is None else np.asarray(x, np.float64)
            for x in (prediction.energy_spread, prediction.force_spread)
        )
        spreads.append((np.sqrt(force.var(axis=1).sum(axis=-1)) if each is None else each)[used])
        energy_spreads.append((energy.std(axis=1) if own is None else own)[used])
        none = np.full(part, np.nan)
        novelties.append((none if prediction.novelty is None else np.asarray(prediction.novelty, np.float64))[used])
    energy, force, stress = (np.concatenate(parts) for parts in zip(*labels, strict=True))
    species = structure.species
    energy = energy + np.where(species >= 0, model.reference[np.maximum(species, 0)], 0.0).sum(axis=-1)
    ok = np.isfinite(energy) & np.isfinite(force).all(axis=(-1, -2))
    label: Any = Label(energy, force, stress, ok)  # pyright: ignore[reportArgumentType]  numpy, as all labels on the host
    spread = np.where(species >= 0, np.concatenate(spreads), 0.0)
    return Predicted(label, spread, np.concatenate(energy_spreads), np.concatenate(novelties))


def validate(path: str | Path, data: str | Path, *, threshold: float | None = None) -> Validation:
    """Measure the model at `path` (model file or run folder) on the labeled structures of `data`.

    `threshold` (eV/Å) is the force error the spread should tell. Raises InputError for files that cannot be read,
    structures without energy or forces, and elements that the model does not know.
    """
    model = models.load(Path(path))
    frames = dataset.labeled(data, "the model", *models.unsaid(model)).frames
    return measure(model, frames, threshold=threshold, name=str(path), source=str(data))


def measure(
    model: models.Model,
    frames: list[Frame],
    *,
    threshold: float | None = None,
    name: str = "model",
    source: str = "data",
    systems: Sequence[str] | None = None,
) -> Validation:
    """Measure a model on labeled frames; `name` and `source` say in the result what they were.

    `systems` are the names of the frames' systems, by default their composition, charge and spin.
    """
    dataset.check_elements(frames, model.table, source, "the model")
    for number, frame in enumerate(frames):
        try:
            frames[number] = frame = with_electrons(frame, *models.unsaid(model), "model")
            models.check_state(model, frame.numbers, frame.periodic, *dataset.state_of(frame))
        except InputError as error:
            raise InputError(f"{source}: frame {number}: {error}") from None
    reference = labels_of(frames)
    dtype = np.float64 if model.precision == "float64" else np.float32
    structure = from_frames(frames, model.table, dtype=dtype)
    predicted = predict_all(model, structure)
    species = np.asarray(structure.species)
    error = atom_errors(predicted.label.force, reference.force, species)
    known = (species >= 0) & np.isfinite(error)
    error = np.where(known, error, 0.0)
    ok = np.asarray(predicted.label.ok) & np.asarray(reference.ok) & known.any(axis=-1)
    real = known & ok[:, None]
    widest, worst = predicted.spread.max(axis=-1)[ok], error.max(axis=-1)[ok]
    residual = (np.asarray(predicted.label.force) - np.asarray(reference.force, np.float64))[real]
    atoms = (species >= 0).sum(axis=-1)[ok]
    energy = (np.asarray(predicted.label.energy) - np.asarray(reference.energy, np.float64))[ok] / atoms
    names = np.array([described(frame) for frame in frames] if systems is None else systems)
    several = [str(kind) for kind in dict.fromkeys(names.tolist())] if len(set(names.tolist())) > 1 else []
    parts: Any = predicted.label, reference, structure
    known = model.support is not None
    novelty = predicted.novelty[ok]
    supported, estimated = novelty <= 1, bounds(model.calibration, widest, novelty)
    counted = np.isfinite(estimated)
    within = coverage(estimated[counted], worst[counted])
    # as if nothing was unlike the training set: what the bound says by element and by spread
    factor = factors(model.calibration, np.minimum(novelty, 1.0))
    each = np.broadcast_to(factor[:, None], real[ok].shape)[real[ok]]
    symbols = np.array(chemical_symbols)[np.asarray(model.table)[species[real]]]
    return Validation(
        model=name,
        data=source,
        errors=compare(predicted.label, reference, structure, model.table),
        structures=calibration(widest, worst, factor=factor, threshold=threshold),
        atoms=calibration(predicted.spread[real], error[real], factor=each, threshold=threshold),
        nominal=math.nan if model.calibration is None else model.calibration.coverage,
        within=within[0],
        within_error=within[1],
        support=float(np.mean(supported)) if known and len(supported) else math.nan,
        supported=supported,
        estimated=estimated,
        worst=worst,
        # the spread of a vector is that of its three components together
        components=normal(residual, np.repeat(predicted.spread[real][:, None] / np.sqrt(3), 3, axis=1)),
        energies=normal(energy, predicted.energy_spread[ok] / atoms),
        elements=coverage_by(symbols, predicted.spread[real], error[real], each),
        systems={kind: _errors(model, _rows(parts, names == kind)) for kind in several},
    )


def described(frame: Frame) -> str:
    """Composition and electrons of a frame, where it has others than a neutral closed shell's."""
    charge, spin = frame.charge or 0, frame.spin or 0
    words = [f"charge {charge:+d}"] * bool(charge) + [f"{spin} unpaired"] * bool(spin)
    return ", ".join([formula(frame.numbers), *words])


def _errors(model: models.Model, parts: tuple[Label, Label, Structure]) -> Errors:
    """Errors of predictions, labels and structures."""
    return compare(*parts, model.table)


def _rows(parts: Any, rows: np.ndarray) -> Any:
    """Some rows of labels and structures."""
    return jax.tree.map(lambda x: np.asarray(x)[rows], parts)


def format(validation: Validation) -> str:
    """The validation as a text table: meV/atom, meV/Å, MPa."""
    errors, per_structure, per_atom = validation.errors, validation.structures, validation.atoms
    energies, components, elements = validation.energies, validation.components, validation.elements
    lines = [
        f"{validation.data}: {errors.structures} structures, {errors.compositions} composition"
        f"{'s' if errors.compositions != 1 else ''}",
        "",
        f"{'':<34}{'MAE':>10}{'RMSE':>10}{'largest':>10}{'numbers':>10}",
        _row("energy, meV/atom", errors.energy, 1e3),
        _row("  less mean per composition", errors.energy_shifted, 1e3),
        _row("force, meV/Å per component", errors.force, 1e3),
        *(_row(f"  {symbol}", value, 1e3) for symbol, value in errors.elements.items()),
    ]
    if errors.stress.count:
        lines.append(_row("stress, MPa per component", errors.stress, 1e3 / GPA))
    for name, own in validation.systems.items():
        lines += ["", f"{name}: {own.structures} structure{'s' if own.structures != 1 else ''}"]
        lines += [_row("  energy, meV/atom", own.energy, 1e3), _row("  force, meV/Å per component", own.force, 1e3)]
    lines += [
        "",
        f"{'calibration':<46}{'structures':>12}{'atoms':>12}",
        _pair("rank correlation of spread and error", per_structure.spearman, per_atom.spearman, ".3f"),
        _pair("supported, %", 100 * validation.support, math.nan, ".1f"),
        _pair("supported and within the bound, %", 100 * validation.within, math.nan, ".1f"),
        _pair("  standard error, %", 100 * validation.within_error, math.nan, ".1f"),
        _pair("  nominal, %", 100 * validation.nominal, math.nan, ".1f"),
        _pair("within the bound, supported or not, %", 100 * per_structure.covered, 100 * per_atom.covered, ".1f"),
        _pair("  standard error, %", 100 * per_structure.covered_error, 100 * per_atom.covered_error, ".1f"),
        _pair("bound / spread, median", per_structure.factor, per_atom.factor, ".2f"),
        _pair("most likely error / spread", per_structure.scale, per_atom.scale, ".2f"),
        _pair("threshold of large errors, meV/Å", 1e3 * per_structure.threshold, 1e3 * per_atom.threshold, ".0f"),
        _pair("AUROC of telling them", per_structure.auroc, per_atom.auroc, ".3f"),
        _pair("log-likelihood gained over one spread for all", math.nan, per_atom.nll_constant - per_atom.nll, ".3f"),
        *(_pair(f"within the bound, {name}, %", math.nan, 100 * e.covered, ".1f") for name, e in elements.items()),
        "",
        f"{'normal laws of the most likely scale':<46}{'energy/atom':>12}{'components':>12}",
        _pair("rank correlation of spread and error", energies.spearman, components.spearman, ".3f"),
        _pair("scale of the spread", energies.scale, components.scale, ".2f"),
        _pair("sharpness, meV or meV/Å", 1e3 * energies.sharpness, 1e3 * components.sharpness, ".2f"),
        _pair("CRPS, meV or meV/Å", 1e3 * energies.crps, 1e3 * components.crps, ".2f"),
        _pair("negative log-likelihood", energies.nll, components.nll, ".3f"),
        _pair("miscalibration area", energies.area, components.area, ".3f"),
    ]
    return "\n".join(lines)


def _row(name: str, value: Statistic, scale: float) -> str:
    numbers = "".join(f"{_number(scale * x, '.2f'):>10}" for x in (value.mae, value.rmse, value.largest))
    return f"{name:<34}{numbers}{value.count:>10}"


def _pair(name: str, first: float, second: float, style: str) -> str:
    return f"{name:<46}{_number(first, style):>12}{_number(second, style):>12}"


def _number(value: float, style: str) -> str:
    return f"{value:{style}}" if math.isfinite(value) else "-"


def save(directory: str | Path, validation: Validation | None = None, **sections: Any) -> Path:
    """Write a validation and further sections into validate.json of a run folder, beside what it already holds.

    The report draws `barrier` = {"model": Barrier, "reference": Barrier} and lists `stability` = Stability.
    """
    path = Path(directory) / "validate.json"
    held = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    held |= to_json(validation) if validation is not None else {}
    path.write_text(json.dumps(held | to_json(sections), allow_nan=False), encoding="utf-8")
    return path


def to_json(value: Any) -> Any:
    """A validation, or any tree of NamedTuples and arrays, as what JSON can hold; NaN becomes null.

    ASE atoms are written as symbols and positions (Å).
    """
    if isinstance(value, ase.Atoms):
        return {"symbols": value.get_chemical_symbols(), "positions": to_json(value.positions)}
    if hasattr(value, "_asdict"):
        value = value._asdict()
    if isinstance(value, dict):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(item) for item in value]
    if isinstance(value, np.ndarray | np.generic):
        return to_json(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value
