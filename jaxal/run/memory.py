"""What the host remembers of a run between segments, and how it is shown, saved and restored."""

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import ase
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxal.committee import evaluation as committees
from jaxal.config import yaml12
from jaxal.config.loading import FILE_NAME, dump
from jaxal.config.schema import Config
from jaxal.core import devices
from jaxal.core.types import InputError, Structure
from jaxal.data import buffer as buffers
from jaxal.data import neighbors
from jaxal.data.structure import Table
from jaxal.program import loop
from jaxal.program.step import CAUSES
from jaxal.report.display import Status
from jaxal.report.metrics import STORE
from jaxal.run import assembly, checkpoint, folder
from jaxal.train import fit as training

CHECKPOINTS = "checkpoints"
RECENT = 20  # segments over which rewinds are counted
# of the configuration, on resume: how long and how, not what is learned from what
MAY_CHANGE = (
    "executor.",
    "label.store",
    "label.timeout",
    "label.workers",
    "output.",
    "stop.",
    "train.final_learning_rate",
    "train.final_steps",
    "validate.",
)


@dataclass
class Progress:
    """What the host remembers between segments; all of it goes into the checkpoint as JSON."""

    reference: list[float]
    config: str  # as YAML, its paths relative to the run folder
    near: list[Any]  # the specs of the neighbor lists
    train_near: list[Any]
    phase: str = "explore"
    elapsed: float = 0.0  # s, over all sittings
    look: int = 0
    asked: int = 0
    failed: int = 0
    flagged: float = 0.0  # of the last segment, fraction
    estimated: float | None = None  # eV/Å, mean of the last segment
    true: float | None = None  # eV/Å, mean force RMSE of the last labels before training on them
    fold: float | None = None  # eV/Å, force RMSE on the held-out labels
    rate: float = 0.0
    slower: int = 0
    # of the latest segments, how often walkers were rewound: by cause, in the order of `step.CAUSES` without the first
    rewinds: list[list[int]] = field(default_factory=list)
    probing: bool = False
    probes: list[float] = field(default_factory=list)  # squared force RMSE of the fresh probes
    sizes: dict[str, int] = field(default_factory=dict)
    busy: float = 0.0  # s of exploration in which the device had work
    idle: float = 0.0  # s of exploration in which it had none: it waited for labels, or for the host
    # of a pooled run
    begun: list[list[int]] = field(default_factory=list)  # ticket of each label at work, and the look it was begun at
    waiting: int | None = None  # structures in the queue
    dropped: int = 0  # structures of which the committee became sure while they waited
    worked: float = 0.0  # s of calculation that were paid for, over all workers
    slots: int = 0  # labels that are calculated at a time


class Run(NamedTuple):
    """An open run: what does not change while it goes."""

    config: Config
    directory: Path
    starts: list[ase.Atoms]  # the same atoms in each
    table: Table
    show: Callable[[Status], None]
    began: float
    interrupted: Callable[[], bool] = lambda: False  # whether this process was told to end
    opener: assembly.Opener | None = None  # of the executor

    @property
    def atoms(self) -> ase.Atoms:
        """The first of the structures that the walkers start from."""
        return self.starts[0]

    @property
    def store(self) -> Path:
        """The label store: the run's own, or one that it shares."""
        shared = self.config.label.store
        return Path(shared) if shared else self.directory / STORE

    @property
    def mesh(self) -> Mesh | None:
        """The devices of the run."""
        return assembly.mesh_of(self.config)


def walker_structures(run: Run) -> Structure:
    """A start structure for each walker, in turn, numpy."""
    config = run.config
    return assembly.from_atoms(
        [run.starts[walker % len(run.starts)] for walker in range(config.explore.walkers)],
        run.table,
        dtype=np.dtype(config.precision),
    )


def restore(run: Run) -> tuple[Progress, loop.State]:
    """State and memory of the newest whole checkpoint.

    Raises InputError where there is none, and for a configuration that differs in what must not change.
    """
    now = dump(run.config, run.directory)

    def read() -> list[Any]:
        stored = checkpoint.newest(run.directory / CHECKPOINTS)
        check_changes(stored.record["host"]["config"], now, run.directory / FILE_NAME)
        return list(stored)

    found: Any = devices.from_first(read)
    stored = checkpoint.Stored(*found)
    state = checkpoint.fitted(stored, _example(run))
    progress = Progress(**stored.record["host"])
    progress.config = now
    return progress, devices.laid(run.mesh, loop.LAYOUT, state)


def check_changes(begun: str, now: str, source: Path) -> None:
    """Raises InputError, with the fields, where two configurations, as YAML, differ in more than `MAY_CHANGE`."""
    was, present = (dict(_fields(yaml12.parse(text, str(source)))) for text in (begun, now))
    differ = [name for name in {**was, **present} if was.get(name) != present.get(name)]
    wrong = [name for name in differ if not name.startswith(MAY_CHANGE)]
    if wrong:
        told = "; ".join(f"{name} was {was.get(name)}, is {present.get(name)}" for name in wrong)
        may = ", ".join(name + "*" * name.endswith(".") for name in MAY_CHANGE)
        raise InputError(
            f"{source}: the run was begun otherwise: {told}. Set it back, or start a new run; {may} may change"
        )


def _fields(tree: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """The values of nested mappings with their dotted names."""
    if not isinstance(tree, dict):
        yield name, tree
        return
    for key, value in tree.items():
        yield from _fields(value, f"{name}.{key}" if name else key)


def _example(run: Run) -> Any:
    """A state of the right structure, as shapes; what sizes it has is on disk."""
    config = run.config
    structures = walker_structures(run)
    committee = assembly.committee_of(config, run.table)
    near = neighbors.plan(structures, committee.potential.cutoff, assembly.SKIN)
    parts = assembly.parts_of(config, run.table, lambda structures, wanted: None)  # pyright: ignore
    static = assembly.static_of(config, run.table, near, near)

    def build(structures: Any, key: Any) -> loop.State:
        one = jax.tree.map(lambda x: x[0], structures)
        from_one = neighbors.build(near, one)
        params = committees.init(committee, key, one, from_one)
        buffer = buffers.init(one, committee.members, 1)
        return loop.start(parts, static, training.init(static.recipe, params), buffer, structures, key)

    return jax.eval_shape(build, jax.tree.map(jnp.asarray, structures), jax.random.key(0))


def save(run: Run, progress: Progress, state: loop.State) -> None:
    """Writes a checkpoint; the growing files are taken back to their present sizes if it is restored.

    All processes call it, the first one writes.
    """
    progress.elapsed = elapsed(run)
    state = devices.whole(state)
    if devices.first():
        progress.sizes = folder.sizes(run.directory)
        checkpoint.save(run.directory / CHECKPOINTS, progress.look, state, asdict(progress))


def spec_in(listed: list[Any]) -> neighbors.Spec:
    """A neighbor spec as JSON had it."""
    cutoff, skin, capacity, images, bins, bin_slots, close = listed
    return neighbors.Spec(cutoff, skin, capacity, tuple(images), tuple(bins) if bins else None, bin_slots, close)


def spec_out(spec: neighbors.Spec) -> list[Any]:
    """A neighbor spec as JSON can hold it."""
    return [list(value) if isinstance(value, tuple) else value for value in spec]


def elapsed(run: Run) -> float:
    """Seconds since the start, over all sittings."""
    return time.monotonic() - run.began


def picoseconds(run: Run, progress: Progress) -> float:
    """Dynamics of each walker so far."""
    return progress.look * run.config.gate.every * 1e-3 * run.config.explore.part["timestep"]


def phase(run: Run, name: str, why: str = "") -> dict[str, Any]:
    """A metrics line that says a phase begins."""
    return {"kind": "phase", "wall": elapsed(run), "phase": name, "why": why}


def note(
    run: Run,
    progress: Progress,
    state: loop.State,
    looks: loop.Look,
    timestep: float,
    reasons: list[str],
) -> None:
    """Takes down what a segment did, in memory and in the files."""
    config, number = run.config, looks.factor.shape[0]
    per_look = config.gate.every * timestep * 1e-3  # ps
    ps = per_look * (progress.look + 1 + np.arange(number))
    wall = elapsed(run)
    asked = int(np.sum(looks.walker >= 0))
    lines = folder.label_records(looks, wall, ps, int(state.labels) - asked + 1, reasons)
    good = [line["rmse"] for line in lines if line["ok"]]
    progress.asked = int(state.labels)
    progress.failed += asked - len(good) if run.config.label.part.kind == "oracle" else 0
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
                "ps": ps[-1],
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
            }
            | _of_pool(progress),
        ],
    )
    reference = np.asarray(progress.reference)
    folder.write_walkers(run.directory, looks, config.output.trajectory, progress.look, run.table, reference)
    progress.look += number


def _of_pool(progress: Progress) -> dict[str, Any]:
    """What only a pooled run knows."""
    if progress.waiting is None:
        return {}
    numbers = {"waiting": progress.waiting, "running": len(progress.begun), "dropped": progress.dropped}
    return numbers | {"worked": progress.worked, "slots": progress.slots}


def show(run: Run, progress: Progress, phase: str, message: str = "", eta: float | None = None) -> None:
    """Shows how the run stands, with the time left by the budget that fills fastest."""
    stop, wall = run.config.stop, elapsed(run)
    ps = picoseconds(run, progress)
    if phase == "explore":
        limits = [(progress.asked, stop.labels), (ps, stop.time), (wall, stop.wall)]
        done = max(now / end for now, end in limits if end)
        eta = wall * (1 - done) / done if done > 0.05 else None
    run.show(
        Status(
            phase=phase,
            elapsed=wall,
            picoseconds=ps,
            labels=progress.asked,
            failed=progress.failed,
            budget=stop.labels,
            gate_rate=progress.flagged if progress.look else None,
            estimated_error=progress.estimated,
            true_error=progress.true,
            waiting=progress.waiting,
            running=None if progress.waiting is None else len(progress.begun),
            eta=eta,
            message=message,
        )
    )
