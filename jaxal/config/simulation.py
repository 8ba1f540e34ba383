"""The fields of dynamics on a finished model: `jaxal dynamics`, `free-energy` and what is observed of it."""

from dataclasses import dataclass
from typing import Annotated, Literal

from jaxal.config.schema import Bias, Count, ExplorerPart, VariablePart
from jaxal.core.units import Unit


@dataclass(frozen=True)
class Walkers:
    """What moves, and how many."""

    part: ExplorerPart
    walkers: Count = 8
    # whose force a walker follows: the mean, or one member's each; default: of motions the members', else the mean
    drive: Literal["mean", "member"] | None = None


@dataclass(frozen=True, kw_only=True)
class Simulation:
    """Everything dynamics needs beside a model and structures."""

    explore: Walkers
    bias: tuple[Bias, ...] = ()  # one or a list
    along: tuple[VariablePart, ...] = ()  # variables that are written down, beside those of the biases
    length: Annotated[float, Unit("ps", 0, True)] = 10.0  # of each walker
    every: Count | None = None  # steps between two frames; default: 20, and for spectra as many as fit into 2 fs
    # what a walker does where the model is unsure; default: of dynamics it stops, of what is observed it goes on
    unsure: Literal["stop", "go"] | None = None
    limit: Annotated[float, Unit("eV/Å", 0, True)] | None = None  # estimated force errors above it are unsure, too
    seed: Annotated[int, Unit("", 0)] = 0
    devices: Literal["auto"] | Count = "auto"
