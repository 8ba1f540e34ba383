r"""Every method of uncertainty on one task: how well it tells errors on unseen frames, and what it costs.

    NPROC=1 XLA_FLAGS=--xla_cpu_multi_thread_eigen=false python scripts/compare_uncertainties.py \
        --train rmd17_malonaldehyde_train_01.xyz.gz --test rmd17_malonaldehyde_test_01.xyz.gz

Full and shared committees, then each registered method on one set of weights, all trained from the same frames with the
same number of steps. Scores are the spreads of atoms' force vectors, in closed form where the method has one: the
largest of a structure against the largest force error, and per atom. The log-likelihood gained is that over one spread
for all, per force component, with the scale fitted on the frames that are held out of the training. Costs are CPU times
over those of one model: of a prediction, medians over rounds in which all are timed one after the other; of the
training with what the method learns after it. Prints a markdown table: means over the seeds ± their standard deviation.
"""

import argparse
import platform
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxal.committee import evaluation as committees
from jaxal.committee.evaluation import Committee
from jaxal.config.loading import parse
from jaxal.config.schema import Offline
from jaxal.core import registry
from jaxal.core.discovery import import_parts
from jaxal.core.types import Label, Params, Structure
from jaxal.data import buffer as buffers
from jaxal.data import files, neighbors
from jaxal.data.structure import from_frames, labels_of, species_table
from jaxal.run import assembly, final_training, training_data
from jaxal.train import fit as training
from jaxal.train.reference import reference_energies
from jaxal.validate.calibration import auroc, likelihood, rank_correlation

POTENTIAL = {"cutoff": 4.5, "channels": 16, "l_max": 2, "layers": 2, "correlation": 2}
COMMITTEES = {
    "full committee of 4": {"members": 4},
    "shared backbone, 4 heads": {"kind": "shared", "members": 4},
    "shared backbone, 8 heads": {"kind": "shared", "members": 8},
    "shared backbone, 8 heads, 2 signs": {"kind": "shared", "members": 8, "signs": 2},
}
TITLES = ("method", "prediction, × one", "training, × one", "force RMSE, meV/Å", "Spearman, structures")
TITLES += ("Spearman, atoms", "AUROC, structures", "log-likelihood gained")
TOGETHER = 16  # structures of a prediction


class Data(NamedTuple):
    """What one seed learns from and is measured on; energies relative to the references."""

    near: neighbors.Spec
    train: tuple[Structure, Label]
    held: np.ndarray
    test: tuple[Structure, Label]


class Trained(NamedTuple):
    """A committee after its training, and the CPU time that took, s."""

    committee: Committee
    params: Params
    spent: float


def data_of(arguments: argparse.Namespace, seed: int) -> Data:
    """Other frames for every seed, the first of them to train on."""
    rng = np.random.default_rng(seed)
    sets = []
    for path, number in ((arguments.train, arguments.frames), (arguments.test, arguments.unseen)):
        frames = files.read(path)
        sets.append([frames[row] for row in np.sort(rng.permutation(len(frames))[:number])])
    table = species_table(sets[0] + sets[1])
    pairs = [(from_frames(frames, table, dtype=np.float64), labels_of(frames)) for frames in sets]
    reference = reference_energies(pairs[0][0], pairs[0][1].energy, len(table))
    train, test = (training_data.cast(*pair, reference, np.dtype("float32")) for pair in pairs)
    both: Any = jax.tree.map(lambda *x: jnp.concatenate(x), train[0], test[0])
    near = neighbors.plan(both, POTENTIAL["cutoff"], 0.0, 1.0)
    return Data(near, train, training_data.spread_hold(arguments.frames, 0.1), test)


def variants() -> dict[str, dict[str, Any]]:
    """Sections of a configuration for each row of the table."""
    rows: dict[str, dict[str, Any]] = {name: {"committee": each} for name, each in COMMITTEES.items()}
    for name in registry.names("uncertainty"):
        if name != "members":  # that is what the committees are
            rows[name] = {"committee": {"members": 1}, "uncertainty": {"name": name}}
    return rows


def config_of(arguments: argparse.Namespace, sections: dict[str, Any]) -> Offline:
    """A configuration for `sections`; its data are not read."""
    train = {"batch": 8, "learning_rate": 0.01, "energy_weight": 5.0}
    raw = {"data": {"file": str(arguments.train)}, "potential": POTENTIAL, "train": train}
    return parse(raw | sections, "/", Offline)


def train(config: Offline, data: Data, table: tuple[int, ...], steps: int, seed: int, single: bool = False) -> Trained:
    """`single`: one model without a method, which no configuration allows, since it has no spread."""
    committee = assembly.committee_of(config, table)
    if single:
        committee = Committee(committee.potential, 1, species=len(table))
    key, key_set, key_fit = jax.random.split(jax.random.key(seed), 3)
    params = training_data.new_params(committee, key, data.near, *data.train)
    buffer = training_data.training_set(*data.train, data.held, committee.members, len(data.held), key_set, 1.0)
    recipe = assembly.recipe(config.train)
    state = training.init(recipe, params)
    rates = jnp.asarray(config.train.learning_rate), jnp.asarray(config.train.final_learning_rate)
    fit = final_training.compiled_fit(committee, recipe, data.near)
    inputs = state, buffer, key_fit, jnp.asarray(steps, jnp.int32), *rates
    fit = fit.lower(*inputs).compile()
    began = time.process_time()
    state, _ = jax.block_until_ready(fit(*inputs))
    assert isinstance(buffer, buffers.Buffer)
    return Trained(committee, state.average, time.process_time() - began)


class Seen(NamedTuple):
    """Spreads and errors of force vectors, eV/Å [b n]; RMSE of the components."""

    spread: np.ndarray
    error: np.ndarray
    rmse: float


def program(trained: Trained, near: neighbors.Spec, structures: Structure):
    """The compiled prediction of `TOGETHER` structures, by parameters, structures and neighbors."""
    first = jax.tree.map(lambda x: x[:TOGETHER], structures)
    listed = jax.jit(neighbors.find, static_argnums=0)
    inputs = trained.params, first, listed(near, first)
    return jax.jit(committees.predict, static_argnums=0).lower(trained.committee, *inputs).compile(), inputs


def see(call: Any, params: Params, near: neighbors.Spec, structures: Structure, labels: Label) -> Seen:
    """The prediction of all structures beside their labels; all atoms are real."""
    listed = jax.jit(neighbors.find, static_argnums=0)
    number, forces, spreads = structures.charge.shape[0], [], []
    for first in range(0, number, TOGETHER):
        some = jax.tree.map(lambda x, first=first: x[np.arange(first, first + TOGETHER) % number], structures)
        prediction = call(params, some, listed(near, some))
        force = np.asarray(prediction.force, np.float64)
        spread = (
            np.sqrt(force.var(axis=1).sum(-1))
            if prediction.force_spread is None
            else np.asarray(prediction.force_spread)
        )
        forces.append(force.mean(axis=1))
        spreads.append(spread)
    gap = np.concatenate(forces)[:number] - np.asarray(labels.force, np.float64)
    return Seen(np.concatenate(spreads)[:number], np.linalg.norm(gap, axis=-1), float(np.sqrt(np.mean(gap**2))))


def measures(held: Seen, test: Seen) -> list[float]:
    """RMSE, rank correlation per structure and per atom, AUROC of the worst tenth, log-likelihood gained."""
    widest, worst = test.spread.max(-1), test.error.max(-1)
    spread, error = np.maximum(test.spread.ravel(), 1e-6), test.error.ravel()
    scale = likelihood(np.maximum(held.spread.ravel(), 1e-6), held.error.ravel())[0]
    variance = (scale * spread) ** 2 / 3  # of one component
    nll = float(np.mean(0.5 * np.log(2 * np.pi * variance) + error**2 / (6 * variance)))
    constant = likelihood(np.ones_like(error), error)[2]
    ranked = rank_correlation(widest, worst), rank_correlation(spread, error)
    return [1e3 * test.rmse, *ranked, auroc(widest, worst > np.quantile(worst, 0.9)), constant - nll]


def costs(calls: dict[str, Any], rounds: int) -> dict[str, float]:
    """CPU time of a prediction, s, medians over the rounds, the first of which is to warm up."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(rounds + 1):
        for name, (call, inputs) in calls.items():
            began = time.process_time()
            for _ in range(5):
                jax.block_until_ready(call(*inputs))
            if turn:
                times[name].append((time.process_time() - began) / 5)
    return {name: float(np.median(each)) for name, each in times.items()}


def main() -> None:
    """Trains, measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", type=Path, required=True, help="labeled frames of one composition to learn from")
    parser.add_argument("--test", type=Path, required=True, help="unseen ones")
    parser.add_argument("--only", nargs="+", metavar="ROW", help="rows of the table whose names begin so")
    parser.add_argument("--frames", type=int, default=200, help="to train on, a tenth of them held out")
    parser.add_argument("--unseen", type=int, default=500)
    parser.add_argument("--steps", type=int, default=1500, help="of 8 structures; full members take their own")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=10)
    arguments = parser.parse_args()
    import_parts()
    rows = variants()
    if arguments.only:
        rows = {name: each for name, each in rows.items() if name.startswith(tuple(arguments.only))}
    table = species_table(files.read(arguments.train)[:1])
    results: dict[str, list[list[float]]] = {name: [] for name in rows}
    for seed in range(arguments.seeds):
        data = data_of(arguments, seed)
        held: Any = jax.tree.map(lambda x, rows=data.held: x[rows], data.train)
        single = train(config_of(arguments, next(iter(rows.values()))), data, table, arguments.steps, seed, single=True)
        calls = {"": program(single, data.near, data.test[0])}
        numbers: dict[str, list[float]] = {}
        for name, sections in rows.items():
            trained = train(config_of(arguments, sections), data, table, arguments.steps, seed)
            calls[name] = program(trained, data.near, data.test[0])
            seen = [see(calls[name][0], trained.params, data.near, each[0], each[1]) for each in (held, data.test)]
            numbers[name] = [trained.spent / single.spent, *measures(*seen)]
            print(f"seed {seed}: {name}: {np.round(numbers[name], 3)}", file=sys.stderr, flush=True)
        spent = costs(calls, arguments.rounds)
        for name, each in numbers.items():
            results[name].append([spent[name] / spent[""], *each])
    device = jax.devices()[0]
    print(
        f"{arguments.train.name}, {arguments.frames} frames ({round(0.1 * arguments.frames)} held out), "
        f"{arguments.unseen} unseen of"
    )
    print(
        f"{arguments.test.name}; {arguments.steps} steps, {arguments.seeds} seeds; "
        f"{platform.machine()} {device.device_kind},"
    )
    print(f"Python {platform.python_version()}, jax {jax.__version__}.\n")
    print("| " + " | ".join(TITLES) + " |\n|" + "---|" * len(TITLES))
    digits = 1, 1, 1, 2, 2, 2, 2
    for name, each in results.items():
        mean, spread = np.mean(each, axis=0), np.std(each, axis=0)
        cells = [f"{m:.{d}f} ± {s:.{d}f}" for m, s, d in zip(mean, spread, digits, strict=True)]
        print("| " + " | ".join([name, *cells]) + " |")


if __name__ == "__main__":
    main()
