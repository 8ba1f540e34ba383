"""An open run: what does not change while it goes, what the host remembers between segments, and how both are shown."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import ase
import numpy as np
from jax.sharding import Mesh

from jaxal.config.schema import Config
from jaxal.config.systems import Population
from jaxal.core.types import Structure
from jaxal.data import neighbors
from jaxal.data.structure import Table
from jaxal.report.display import Status
from jaxal.report.metrics import STORE
from jaxal.run import assembly, grouping, labeling

CHECKPOINTS = "checkpoints"
RECENT = 20  # segments over which rewinds are counted


@dataclass
class Progress:
    """What the host remembers between segments; all of it goes into the checkpoint as JSON."""

    reference: list[float]  # eV, of the species in structures
    config: str  # as YAML, its paths relative to the run folder
    near: list[Any]  # the specs of the neighbor lists, of each group of walkers
    train_near: list[Any]
    isolated: list[float | None] = field(default_factory=list)  # eV, of isolated atoms; None where nobody knows
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

    @property
    def exact(self) -> bool:
        """Whether the energy of an isolated atom is known: then the potential has those that are exact."""
        return any(energy is not None for energy in self.isolated)


class Run(NamedTuple):
    """An open run: what does not change while it goes."""

    config: Config
    directory: Path
    systems: list[Population]
    groups: list[list[int]]  # the numbers of the systems in each group of walkers
    table: Table
    show: Callable[[Status], None]
    began: float
    interrupted: Callable[[], bool] = lambda: False  # whether this process was told to end
    opener: labeling.Opener | None = None  # of the executor

    @property
    def starts(self) -> list[ase.Atoms]:
        """The structures that the walkers of all systems start from."""
        return [start for system in self.systems for start in system.starts]

    @property
    def atoms(self) -> int:
        """Atoms of the largest system."""
        return grouping.largest(self.systems)

    @property
    def walkers(self) -> list[int]:
        """The number of each walker's system; walkers are numbered group by group."""
        return grouping.walkers_of(self.systems, self.groups)

    @property
    def timesteps(self) -> np.ndarray:
        """That of each walker, fs."""
        own = [system.sampler.timestep for system in self.systems]
        return np.array([own[at] for at in self.walkers])

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
    """A start structure for each walker, those of its system in turn; numpy, padded to the largest system."""
    return grouping.walker_structures(run.systems, run.groups, run.table, np.dtype(run.config.precision))


def name_of(run: Run, walker: int) -> str | None:
    """The name of a walker's system; None for no walker."""
    return run.systems[run.walkers[walker]].name if walker >= 0 else None


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
    """Dynamics of each walker so far; of several systems those of the shortest time step."""
    return progress.look * run.config.gate.every * 1e-3 * float(run.timesteps.min())


def show(run: Run, progress: Progress, phase: str, message: str = "", eta: float | None = None) -> None:
    """Shows how the run stands, with the time left by the budget that fills fastest."""
    stop, wall = run.config.stop, elapsed(run)
    ps = picoseconds(run, progress)
    if phase == "explore":
        limits = [(progress.asked, stop.labels), (ps, stop.time), (wall, stop.wall)]
        fraction = max(now / end for now, end in limits if end)
        eta = wall * (1 - fraction) / fraction if fraction > 0.05 else None
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
