"""The fields of a configuration: frozen dataclasses, one for each section of the YAML file.

Nothing here reads a file or knows a part: `jaxal.config.loading` checks values against these annotations and against
the options of the registered parts. A physical field is annotated `Annotated[float, Unit(...)]`; it takes a
number in that unit or text such as "2 ps". `Unit("", 1)` bounds a plain number, `Below(1)` bounds it from above.
"""

import functools
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from jaxal.core import registry
from jaxal.core.types import InputError
from jaxal.core.units import Below, Unit


class Kinds(NamedTuple):
    """Marks a part with the kinds of the registry it may be of, and with the name taken where none is given."""

    kinds: tuple[str, ...]
    default: str = ""  # there is none: it must be named


FIRST, FIRST_OF_EACH = 10, 6  # labels before the dynamics, where nobody says how many
NAME = r"[A-Za-z0-9][A-Za-z0-9_-]*"  # of a system
Count = Annotated[int, Unit("", 1)]
Factor = Annotated[float, Unit("", 0)]
Fraction = Annotated[float, Unit("", 0), Below(1)]
Precision = Literal["float32", "float64"]


@dataclass(frozen=True)
class Part:
    """One registered part with all its options, in the order of its signature, in their own units."""

    kind: str
    name: str
    options: tuple[tuple[str, Any], ...]

    def bind(self) -> Callable:
        """The registered function with the options filled in."""
        return functools.partial(registry.get(self.kind, self.name), **dict(self.options))

    def __getitem__(self, option: str) -> Any:
        """The value of one option. Raises KeyError if the part has none of that name."""
        return dict(self.options)[option]


PotentialPart = Annotated[Part, Kinds(("potential",), "equivariant")]
ScorePart = Annotated[Part, Kinds(("score",), "max_force_spread")]
ExecutorPart = Annotated[Part, Kinds(("executor",), "local")]
UncertaintyPart = Annotated[Part, Kinds(("uncertainty",), "members")]
KernelPart = Annotated[Part, Kinds(("kernel",), "mean_feature")]
SelectPart = Annotated[Part, Kinds(("select",), "top_k")]
ExplorerPart = Annotated[Part, Kinds(("explorer", "sampler"), "nvt_langevin")]
VariablePart = Annotated[Part, Kinds(("variable",))]
SchedulePart = Annotated[Part, Kinds(("schedule",), "single")]
TaskPart = Annotated[Part, Kinds(("task",))]


@dataclass(frozen=True)
class Bias:
    """An energy that drives the walkers beside the committee's force; several act at once."""

    part: Annotated[Part, Kinds(("bias",))]
    variables: tuple[VariablePart, ...] = ()  # collective variables, written down with every frame


@dataclass(frozen=True)
class Structures:
    """The structures that the walkers of a system start from: the same atoms in the same order."""

    file: Path  # any file ASE reads
    index: int | Literal["all"] | tuple[int, ...] = 0  # frames of the file, walkers take them in turn; -1 is the last
    charge: int | None = None  # e; default: what the file says, else 0
    spin: Annotated[int, Unit("", 0)] | None = None  # number of unpaired electrons; likewise
    supercell: tuple[Count, Count, Count] = (1, 1, 1)  # repetitions along the three lattice vectors
    # rows of atoms (from 0; of the supercell, where there is one) that nothing moves, beside those that the file fixes
    fixed: tuple[Annotated[int, Unit("", 0)], ...] = ()


@dataclass(frozen=True)
class System(Structures):
    """A system of a run."""

    walkers: Count | None = None  # default: an even share of explore.walkers
    explore: ExplorerPart | None = None  # where it differs from `explore`: the fields that do
    bias: tuple[Bias, ...] | None = None  # in place of `bias`
    validate: Path | None = None  # labeled frames of this system, beside validate.data


@dataclass(frozen=True)
class Committee:
    """How many models, what they share, and how their evaluation is batched."""

    kind: Literal["full", "shared"] = "full"  # members with weights of their own, or with only a readout head each
    members: Count = 4
    batching: Literal["auto", "map", "vmap"] = "auto"  # auto chooses by backend and size
    signs: Annotated[int, Unit("", 0)] = 0  # shared: 0 predicts all members, more their mean and estimated spread

    def __post_init__(self) -> None:
        """Raises InputError for signs where there can be none, and for one, which would estimate very little."""
        if self.signs and self.kind != "shared":
            raise InputError(f"committee.signs: {self.signs} does not fit; give 0, or committee.kind = shared")
        if self.signs == 1:
            raise InputError("committee.signs: 1 is too small; give at least 2, or 0 for the forces of all members")


@dataclass(frozen=True)
class Explore:
    """The dynamics that visits structures."""

    part: ExplorerPart
    walkers: Count = 8  # of all systems together
    drive: Literal["mean", "member"] = "mean"  # the force a walker follows: the committee's mean, or one member's each


@dataclass(frozen=True)
class Gate:
    """Which frames are worth a label, and which are not physical."""

    part: Annotated[Part, Kinds(("gate",), "conformal")]
    every: Count = 10  # steps between two looks at the walkers
    implausible: Annotated[float, Unit("eV/Å", 0, True)] = 2.0  # a frame with a larger estimated error is not physical
    closest: Annotated[float, Unit("", 0)] = 0.5  # nor is one with atoms closer than this part of their covalent radii
    hottest: Annotated[float, Unit("", 1, True)] = 10.0  # nor one hotter than this multiple of the bath's temperature


@dataclass(frozen=True)
class Label:
    """The reference method, and which of its answers are accepted."""

    part: Annotated[Part, Kinds(("labeler", "oracle"), "tblite")]
    # labels before the dynamics, of all systems together; default: 10, of several systems 6 of each
    initial: Annotated[int, Unit("", 2)] | None = None
    # energies of isolated atoms: by the method where it can, by the method or not at all, or none but a fit to labels
    atoms: Literal["auto", "method", "fit"] = "auto"
    # labels of random frames beyond stop.labels, for the bound; 0: none; default: a quarter of stop.labels, at most 100
    calibration: Annotated[int, Unit("", 0)] | None = None
    mode: Literal["inline", "pooled"] = "inline"  # the dynamics wait for a label, or go on elsewhere until it is there
    batch: Count | None = None  # at most so many labels at one look; default: as many as walkers
    queue: Count = 64  # pooled: structures that can wait for a label
    lag: Count | None = None  # pooled: a label is used so many segments after it was begun; default: when it is there
    workers: Annotated[int, Unit("", 0)] = 0  # processes of the executor `local`; 0 calculates in this one
    store: str = ""  # label store of several runs, seen from where `jaxal run` is started; default: one of its own
    timeout: Annotated[float, Unit("s", 0, True)] = 600.0  # one calculation may take as long; then it has failed
    max_force: Annotated[float, Unit("eV/Å", 0, True)] = 30.0  # a larger force on any atom fails the label
    net_force: Annotated[float, Unit("eV/Å", 0, True)] = 0.1  # so does a larger sum of all forces


@dataclass(frozen=True)
class Train:
    """How the members are fitted."""

    steps: Count = 100  # after each labeling
    initial_steps: Count = 500  # before the dynamics
    final_steps: Annotated[int, Unit("", 0)] = 2000  # after the last label
    batch: Count = 8  # structures in a step
    learning_rate: Annotated[float, Unit("", 0, True)] = 2e-3
    final_learning_rate: Factor = 1e-5  # at the end of the final steps
    optimizer: Literal["adamw", "amsgrad"] = "adamw"
    weight_decay: Factor = 0.0
    clip: Annotated[float, Unit("", 0, True)] = 10.0  # largest norm of the gradient
    ema: Fraction = 0.99  # decay of the averaged weights that predict
    energy_weight: Factor = 1.0
    force_weight: Factor = 1.0
    stress_weight: Factor = 0.0
    huber: Annotated[float, Unit("eV/Å", 0, True)] | None = None  # force errors above it count linearly
    holdout: Fraction = 0.1  # fraction of the labels never trained on: calibration and early stopping
    bootstrap: bool = True  # each member weighs the labels at random


@dataclass(frozen=True)
class Stop:
    """When the run ends: as soon as one of these is reached."""

    labels: Annotated[int, Unit("", 2)] = 400  # failed ones included
    quiet: Annotated[float, Unit("ps", 0, True)] = 5.0  # per walker without a gate
    time: Annotated[float, Unit("ps", 0, True)] | None = None  # per walker
    error: Annotated[float, Unit("eV/Å", 0, True)] | None = None  # force RMSE on fresh probe labels
    probes: Count = 16  # probe labels for that error
    wall: Annotated[float, Unit("s", 0, True)] | None = None  # since the start


@dataclass(frozen=True)
class Validate:
    """What the finished potential is compared with."""

    data: Path | None = None  # labeled frames, any file ASE reads


@dataclass(frozen=True)
class Output:
    """How often something is written."""

    checkpoint: Annotated[float, Unit("s", 0)] = 60.0  # between two checkpoints
    trajectory: Count = 10  # looks between two frames


@dataclass(frozen=True)
class Data:
    """Labeled structures for `jaxal train`."""

    file: Path  # any file ASE reads, with energies and forces
    validation: Path | None = None  # held-out frames; default: the fraction train.holdout of `file`
    charge: int | None = None  # e, where a frame does not say it; default: 0
    spin: Annotated[int, Unit("", 0)] | None = None  # number of unpaired electrons; likewise
    method: str | None = None  # of the labels that are taken, where frames name several


def calibrating(budget: int) -> int:
    """How many labels beyond its budget a run takes to calibrate the bound, by default."""
    return min(budget // 4, 100)


def spread_of(committee: Committee, uncertainty: Part) -> None:
    """Raises InputError where there is nothing that a spread could come from."""
    if uncertainty.name == "members" and committee.members < 2:
        raise InputError(
            f"committee.members: {committee.members} has no spread; give at least 2, or another uncertainty.name"
        )
    fitting(committee, uncertainty)


def fitting(committee: Committee, uncertainty: Part) -> None:
    """Raises InputError where committee and uncertainty do not go together, be there a spread or none."""
    if uncertainty.name == "members" and committee.kind == "shared" and committee.members < 2:
        raise InputError("committee.members: 1 does not fit committee.kind = shared; give at least 2, or full")
    if uncertainty.name != "members" and committee.kind == "shared":
        raise InputError(
            f"committee.kind: shared does not go with uncertainty.name = {uncertainty.name}; give full, or members"
        )


@dataclass(frozen=True, kw_only=True)
class Config:
    """Everything `jaxal run` needs."""

    system: System | None = None  # a single one, or the one that a run began with
    systems: Mapping[str, System] = field(default_factory=dict)  # several, by names of the user's
    potential: PotentialPart
    committee: Committee
    uncertainty: UncertaintyPart
    explore: Explore
    score: ScorePart
    gate: Gate
    kernel: KernelPart
    select: SelectPart
    schedule: SchedulePart
    label: Label
    executor: ExecutorPart
    train: Train
    stop: Stop
    validate: Validate
    output: Output
    bias: tuple[Bias, ...] = ()  # one or a list
    task: TaskPart | None = None  # what the run is to answer, beside a model
    seed: Annotated[int, Unit("", 0), Below(2**32)] = 0
    precision: Precision = "float32"
    devices: Literal["auto"] | Count = "auto"  # auto takes the most there are that divide walkers and members evenly

    @property
    def calibration(self) -> int:
        """Labels that calibrate the bound."""
        return calibrating(self.stop.labels) if self.label.calibration is None else self.label.calibration

    @property
    def named(self) -> dict[str, System]:
        """The systems by their fields: `system`, `systems.NAME`."""
        first = {} if self.system is None else {"system": self.system}
        return first | {f"systems.{name}": system for name, system in self.systems.items()}

    @property
    def walkers(self) -> dict[str, int]:
        """How many walkers each system has, by its field: those that it is given, else a share of what is left."""
        own = {name: system.walkers for name, system in self.named.items()}
        if self.system is not None:  # what is added beside it takes no walkers from it
            own["system"] = self.system.walkers or self.explore.walkers
        sharing = [name for name, number in own.items() if number is None]
        left = self.explore.walkers - sum(number or 0 for number in own.values())
        shares = {name: max(1, left // len(sharing) + (at < left % len(sharing))) for at, name in enumerate(sharing)}
        return {name: shares[name] if number is None else number for name, number in own.items()}

    @property
    def initial(self) -> int:
        """Labels before the dynamics."""
        number = len(self.named)
        return self.label.initial or (FIRST if number == 1 else FIRST_OF_EACH * number)

    def __post_init__(self) -> None:
        """Raises InputError where there is no system, and for a committee, uncertainty and drive that do not fit."""
        if self.system is None and not self.systems:
            raise InputError("system.file: missing; give a file, or several systems by name under `systems`")
        for name in self.systems:
            if not re.fullmatch(NAME, str(name)) or not isinstance(name, str):
                raise InputError(f"systems.{name}: a name is text of letters, digits, _ and -; give {_plain(name)}")
        spread_of(self.committee, self.uncertainty)
        if self.explore.drive == "member" and self.committee.signs:
            raise InputError(
                f"explore.drive: member needs the forces of all members; give committee.signs = 0, not "
                f"{self.committee.signs}, or mean"
            )


def _plain(name: Any) -> str:
    """A name of a system that is like this."""
    text = re.sub(r"[^A-Za-z0-9_-]+", "_", str(name)).strip("_-")
    return text if isinstance(name, str) and text else f"such as system_{text}".rstrip("_")


@dataclass(frozen=True)
class Bench:
    """What `jaxal bench` takes from a configuration."""

    potential: PotentialPart


@dataclass(frozen=True)
class Offline:
    """Everything `jaxal train` needs."""

    data: Data
    potential: PotentialPart
    committee: Committee
    uncertainty: UncertaintyPart
    train: Train
    seed: Annotated[int, Unit("", 0), Below(2**32)] = 0
    precision: Precision = "float32"

    def __post_init__(self) -> None:
        """Raises InputError where committee and uncertainty do not go together; one member alone has no spread."""
        fitting(self.committee, self.uncertainty)
