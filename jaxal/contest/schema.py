"""The fields of a contest, and the entrants that follow from them.

A strategy is what decides which labels are bought: uncertainty, committee, score, kernel and selection, or a schedule
of selections. In live tasks it may also drive the walkers. What it leaves out is the contest's.
"""

import dataclasses
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from inspect import Parameter
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from jaxal.config import loading as configs
from jaxal.config.schema import (
    Bias,
    Committee,
    Count,
    Explore,
    KernelPart,
    Kinds,
    Part,
    PotentialPart,
    Precision,
    SchedulePart,
    ScorePart,
    SelectPart,
    Structures,
    Train,
    UncertaintyPart,
    spread_of,
)
from jaxal.core import registry
from jaxal.core.types import InputError
from jaxal.core.units import Below, Unit

BASELINES = ("random", "farthest")  # selections that are always in
NAME = re.compile(r"[A-Za-z0-9_.+-]+")  # of a task or strategy: it is a folder's name too
ALL = "all"
Names = tuple[str, ...] | Literal["all"]
AXES = ("uncertainty", "score", "kernel", "select")
Drive = Literal["mean", "member"]
SINGLE = Part("schedule", "single", ())


@dataclass(frozen=True)
class Live:
    """A task whose candidates the committee's own dynamics finds, and whose labels are calculated."""

    system: Structures
    explore: Explore
    label: Annotated[Part, Kinds(("labeler",), "tblite")]
    bias: tuple[Bias, ...] = ()  # of the walkers, beside that of a strategy
    workers: Annotated[int, Unit("", 0)] = 0  # processes that calculate labels; 0 calculates in this one
    every: Count = 20  # steps between two looks at the walkers
    looks: Count = 25  # in a round; each gives one candidate of each walker
    implausible: Annotated[float, Unit("eV/Å", 0, True)] = 3.0  # a frame with a larger estimated error is not physical
    closest: Annotated[float, Unit("", 0)] = 0.5  # nor is one with atoms closer than this part of their covalent radii
    hottest: Annotated[float, Unit("", 1, True)] = 10.0  # nor one hotter than this multiple of the bath's temperature
    max_force: Annotated[float, Unit("eV/Å", 0, True)] = 30.0  # a larger force on any atom fails the label
    net_force: Annotated[float, Unit("eV/Å", 0, True)] = 0.1  # so does a larger sum of all forces
    test_temperature: Annotated[float, Unit("K", 0, True)] = 300.0  # of the labeler's own dynamics, without `test`
    test_every: Count = 50  # steps between two of its frames


@dataclass(frozen=True)
class Task:
    """What is to be learned: a file of labeled frames to choose from, or live."""

    pool: str = ""  # labeled frames, relative to `data`
    test: str = ""  # labeled frames, relative to `data`; without them a part of the pool, or frames of dynamics
    path: str = ""  # frames along a reaction path, relative to `data`; the first is where the barrier is counted from
    live: Live | None = None
    pool_frames: Count | None = None  # at most so many, evenly spaced; default: all
    test_frames: Count = 500  # at most so many, evenly spaced
    budgets: tuple[Count, ...] = ()  # default: those of the contest
    metric: Literal["auto", "force", "energy"] = "auto"  # what ranks; auto: the force error, where there are forces
    potential: PotentialPart | None = None  # default: that of the contest
    train: Train | None = None  # default: that of the contest
    charge: int | None = None  # e, where a frame does not say it; default: 0
    spin: Annotated[int, Unit("", 0)] | None = None  # number of unpaired electrons; likewise
    method: str | None = None  # of the labels that are taken, where frames name several


@dataclass(frozen=True)
class Strategy:
    """A strategy; what is left out is the contest's."""

    uncertainty: UncertaintyPart | None = None
    committee: Committee | None = None
    score: ScorePart | None = None
    kernel: KernelPart | None = None
    select: SelectPart | None = None
    schedule: SchedulePart | None = None  # several selections in place of one
    bias: tuple[Bias, ...] = ()  # of the walkers, in live tasks, beside those of the task
    drive: Drive | None = None  # of the walkers, in live tasks; default: that of the task's `explore`


@dataclass(frozen=True)
class Grid:
    """Strategies by the names of their parts, every combination; `all` is every registered one."""

    uncertainty: Names = ()
    score: Names = ()
    kernel: Names = ()
    select: Names = ()
    without: tuple[str, ...] = ()  # parts that `all` leaves out
    committee: Committee | None = None


@dataclass(frozen=True)
class Contest:
    """Everything `jaxal contest` needs."""

    potential: PotentialPart
    committee: Committee
    uncertainty: UncertaintyPart
    score: ScorePart
    kernel: KernelPart
    select: SelectPart
    train: Train  # `initial_steps` before the first round, `steps` in each after it; no `final_steps`
    tasks: Mapping[str, Task] = dataclasses.field(default_factory=dict)
    strategies: Mapping[str, Strategy] = dataclasses.field(default_factory=dict)
    grids: tuple[Grid, ...] = ()
    budgets: tuple[Count, ...] = (50, 120, 190, 260, 330, 400)  # labels at which all are compared
    seeds: Annotated[int, Unit("", 2)] = 5
    seed: Annotated[int, Unit("", 0), Below(2**32)] = 0
    data: str = "."  # folder of the tasks' files, relative to the configuration's
    precision: Precision = "float32"


class Model(NamedTuple):
    """What of a strategy decides how a model is trained and predicts."""

    committee: Committee
    uncertainty: Part


class Entrant(NamedTuple):
    """A strategy with nothing left open."""

    name: str
    model: Model
    score: Part
    kernel: Part
    select: Part
    schedule: Part = SINGLE
    bias: tuple[Bias, ...] = ()
    drive: Drive | None = None  # None: that of the task

    @property
    def selection(self) -> str:
        """What chooses, in a word."""
        return self.select.name if self.schedule == SINGLE else self.schedule.name

    def is_plain(self, select: str) -> bool:
        """Whether it is this selection, with nothing beside it."""
        return self.select.name == select and (self.schedule, self.bias, self.drive) == (SINGLE, (), None)


def load(path: str | Path, overrides: Sequence[str] = ()) -> Contest:
    """The contest of a YAML file, its files' paths absolute. Raises InputError, one line, for every mistake."""
    contest = configs.load(path, overrides, Contest)
    root = Path(path).resolve().parent / Path(contest.data).expanduser()
    if not root.is_dir():
        raise InputError(f"{path}: data: there is no folder {root}; give that of the tasks' files, data=FOLDER")
    try:
        tasks = {name: _task(contest, name, task, root) for name, task in contest.tasks.items()}
        contest = dataclasses.replace(contest, tasks=tasks, data=str(root.resolve()))
        if not tasks:
            raise InputError("tasks: missing; give at least one, {name: {pool: FILE, test: FILE}}")
        entrants(contest)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    return contest


def _task(contest: Contest, name: str, task: Task, root: Path) -> Task:
    """A task with the paths of its files and what it leaves to the contest. Raises InputError."""
    field = f"tasks.{name}"
    _named("tasks", name)
    budgets = task.budgets or contest.budgets
    if len(budgets) < 2 or any(low >= high for low, high in itertools.pairwise(budgets)) or budgets[0] < 2:
        raise InputError(f"{field}.budgets: {list(budgets)} does not fit; give two or more rising numbers, 2 at least")
    if bool(task.pool) == (task.live is not None):
        raise InputError(f"{field}: give either pool, a file of labeled frames, or live")
    files = {}
    for each in ("pool", "test", "path"):
        entry = getattr(task, each)
        file = (root / Path(entry).expanduser()).resolve() if entry else None
        if file is not None and not file.is_file():
            raise InputError(f"{field}.{each}: there is no file {file}; paths are relative to data ({root})")
        files[each] = str(file or "")
    if task.live is not None and task.metric == "energy":
        raise InputError(f"{field}.metric: energy does not fit a live task, which has forces; give force")
    return dataclasses.replace(
        task,
        **files,
        budgets=budgets,
        potential=task.potential or contest.potential,
        train=task.train or contest.train,
    )


def entrants(contest: Contest) -> tuple[Entrant, ...]:
    """The strategies, and for each model random and farthest-point selection where they are missing.

    Those of one model stand together, its random selection first. Raises InputError for what cannot be.
    """
    default = Model(contest.committee, contest.uncertainty)
    strategies: dict[str, Entrant] = {}
    for name, strategy in _listed(contest):
        model = Model(strategy.committee or contest.committee, strategy.uncertainty or contest.uncertainty)
        score, kernel = strategy.score or contest.score, strategy.kernel or contest.kernel
        select = strategy.select or contest.select
        own = strategy.schedule or SINGLE, strategy.bias, strategy.drive
        entrant = Entrant(name, model, score, kernel, select, *own)
        _fits(contest, strategy, entrant)
        if strategies.setdefault(name, entrant) != entrant:
            raise InputError(f"strategies.{name}: two different strategies have this name; give one another")
        try:
            spread_of(*model)
        except InputError as error:
            raise InputError(f"strategies.{name}: {error}") from None
    models = list(dict.fromkeys([default, *(entrant.model for entrant in strategies.values())]))
    if not any(entrant.model == default for entrant in strategies.values()) and len(models) > 1:
        models.remove(default)  # nobody uses it
    ordered = []
    for model in models:
        own = [entrant for entrant in strategies.values() if entrant.model == model]
        for select in BASELINES:
            if not any(entrant.is_plain(select) for entrant in own):
                name = select if model == default else f"{_model_name(model, default, models)}+{select}"
                if name in strategies:
                    raise InputError(f"strategies.{name}: this name is that of a baseline; give another")
                part = _default_part("select", select, contest)
                own.append(Entrant(name, model, contest.score, contest.kernel, part))
        ordered += sorted(own, key=lambda entrant: (not any(map(entrant.is_plain, BASELINES)), entrant.selection))
    return tuple(sorted(ordered, key=lambda entrant: (models.index(entrant.model), not entrant.is_plain("random"))))


def baseline(entrant: Entrant, entered: Sequence[Entrant]) -> Entrant:
    """Random selection with the same model: what the entrant's choice is measured against."""
    return next(each for each in entered if each.model == entrant.model and each.is_plain("random"))


def _fits(contest: Contest, strategy: Strategy, entrant: Entrant) -> None:
    """Raises InputError, with the field, where the parts of a strategy do not go with each other or with a task."""
    field = f"strategies.{entrant.name}"
    if strategy.select is not None and entrant.schedule != SINGLE:
        raise InputError(f"{field}.select: does not go with a schedule, whose selections are schedule.of; leave it out")
    try:
        entrant.schedule.bind()()
    except InputError as error:
        raise InputError(f"{field}: {error}") from None
    pools = [name for name, task in contest.tasks.items() if task.live is None]
    for name, is_set in (("bias", bool(entrant.bias)), ("drive", entrant.drive is not None)):
        if is_set and pools:
            raise InputError(f"{field}.{name}: nothing is driven in tasks.{pools[0]}, which has a pool; leave it out")
    committee = entrant.model.committee
    if entrant.drive == "member" and (committee.members == 1 or committee.signs):
        raise InputError(
            f"{field}.drive: member needs the forces of several members; give mean, or a committee of more"
        )


def _listed(contest: Contest) -> Iterator[tuple[str, Strategy]]:
    """The strategies by name, those of the grids first."""
    for row, grid in enumerate(contest.grids):
        field = f"grids[{row}]"
        axes: list[list[Part | None]] = []
        for kind in AXES:
            names = getattr(grid, kind)
            listed = [n for n in registry.names(kind) if n not in grid.without] if names == ALL else names
            for name in listed:
                if name not in registry.names(kind):
                    raise InputError(f"{field}.{kind}: unknown {kind} {name!r}; there are {_all(kind)}")
            axes.append([_default_part(kind, name, contest) for name in listed] or [None])
        if axes == [[None]] * len(AXES):
            raise InputError(f"{field}: empty; give lists of parts, such as {{select: all}}")
        for parts in itertools.product(*axes):
            chosen = dict(zip(AXES, parts, strict=True))
            words = [part.name for part in parts if part is not None and part != contest.uncertainty]
            if grid.committee not in (None, contest.committee) and chosen["uncertainty"] in (None, contest.uncertainty):
                words.insert(0, f"{grid.committee.kind}{grid.committee.members}")
            yield "+".join(words) or contest.select.name, Strategy(committee=grid.committee, **chosen)
    for name, strategy in contest.strategies.items():
        _named("strategies", name)
        yield name, strategy


def _all(kind: str) -> str:
    return ", ".join(registry.names(kind))


def _default_part(kind: str, name: str, contest: Contest) -> Part:
    """A part by its name: with the options of the contest's own if it is that, else with its defaults."""
    own: Part = getattr(contest, kind)
    if own.name == name:
        return own
    options = registry.options(kind, name)
    for option in options:
        if option.default is Parameter.empty:
            raise InputError(f"grids: {kind} {name} needs its option {option.name}; make it one of the strategies")
    return Part(kind, name, tuple((option.name, option.default) for option in options))


def _model_name(model: Model, default: Model, models: Sequence[Model]) -> str:
    """A short name of a model that is not the contest's own."""
    if model.uncertainty == default.uncertainty:
        return f"{model.committee.kind}{model.committee.members}"
    alike = [each for each in models if each.uncertainty.name == model.uncertainty.name]
    number = f"-{alike.index(model) + 1}" if len(alike) > 1 else ""
    return f"{model.uncertainty.name}{number}"


def _named(field: str, name: Any) -> None:
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise InputError(f"{field}: {str(name)[:40]!r} is no name for one; give letters, digits and . _ + -")


def plain(value: Any) -> Any:
    """Anything of a contest as JSON knows it."""
    if isinstance(value, Part):
        return {"name": value.name} | {name: plain(option) for name, option in value.options}
    if dataclasses.is_dataclass(value):
        return {each.name: plain(getattr(value, each.name)) for each in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(name): plain(each) for name, each in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return {name: plain(each) for name, each in value._asdict().items()}  # pyright: ignore
    if isinstance(value, tuple | list):
        return [plain(each) for each in value]
    return str(value) if isinstance(value, Path) else value
