"""What the program keeps of a walker and says of a look, and the labels it learns from."""

from typing import Any, NamedTuple

import jax
from jaxtyping import Array, Bool, Float, Int

from jaxal.core.types import Label, Structure
from jaxal.data.padding import atoms_to, structures_to


class Trusted(NamedTuple):
    """Where a walker goes back to: its last frame that needed no label, or that got one."""

    structure: Structure
    force: Float[Array, "*w n 3"]  # that moves the walker
    stress: Float[Array, "*w 3 3"]
    drift: Any = ()  # what the biases of each group had learned of its walkers [w]


def cut(trusted: Trusted, group: int, rows: slice, atoms: int) -> Trusted:
    """Those of the walkers of one group, with room for so many atoms."""
    structure, force, stress = jax.tree.map(lambda x: x[rows], trusted[:3])
    return Trusted(structures_to(structure, atoms), atoms_to(force, atoms), stress, trusted.drift[group])


class Look(NamedTuple):
    """What one look reports; stacked over the looks of a segment."""

    structure: Structure  # [w] last physical frame of each walker; the trusted one where there was none since
    energy: Float[Array, "w"]  # committee mean, eV, relative to the references; with the temperature NaN where none was
    temperature: Float[Array, "w"]  # K, of the same frames, with the degrees of freedom there are
    score: Float[Array, "w"]
    # Estimated error, eV/Å; NaN where the gate estimates none, or none yet, and infinite where an atom is isolated and
    # none was trained on.
    estimate: Float[Array, "w"]
    supported: Bool[Array, "w"]  # like what was trained on
    flagged: Bool[Array, "w"]
    unphysical: Bool[Array, "w"]
    cause: Int[Array, "w"]  # why not physical, of `step.CAUSES`
    walker: Int[Array, "k"]  # that was labeled; -1 = none
    probe: Bool[Array, "k"]
    ok: Bool[Array, "k"]
    label_score: Float[Array, "k"]  # before training
    label_estimate: Float[Array, "k"]  # eV/Å, before training; NaN as above
    label_error: Float[Array, "k"]  # largest force error of an atom before training, eV/Å
    label_rmse: Float[Array, "k"]  # force RMSE before training, eV/Å
    factor: Float[Array, ""]
    threshold: Float[Array, ""]
    coverage: Float[Array, ""]  # labels since the start whose error was within the estimated one; NaN before the first
    loss: Float[Array, ""]  # mean of the members' training losses; NaN where nothing was trained
    fold_rmse: Float[Array, ""]  # force RMSE of the committee mean on the held-out labels; NaN if not evaluated
    # Energies of the biases, eV, collective variables, and what samplers report, of the same frames as the temperature
    report: dict[str, Float[Array, "w"]]
    # Whether the walker has come to its end, on a frame that is trusted; None where no sampler comes to an end
    over: Bool[Array, "w"] | None = None


class Lesson(NamedTuple):
    """Labels that have come, and what the committee said of them before."""

    structure: Structure  # [k]
    score: Float[Array, "k"]
    force: Float[Array, "k n 3"]  # eV/Å, committee mean
    label: Label  # [k]
    ok: Bool[Array, "k"]  # the others are not learned from
    hold: Bool[Array, "k"]  # held out
    arm: Int[Array, "k"] | None = None  # of the schedule, that picked it; -1 and None: nothing is learned of an arm


class Taught(NamedTuple):
    """How wrong the committee was before a lesson, and how it stands after it."""

    error: Float[Array, "k"]  # eV/Å, largest force error of an atom; NaN where not ok
    rmse: Float[Array, "k"]  # eV/Å, force RMSE; NaN where not ok
    loss: Float[Array, ""]  # mean of the members' training losses
    fold_rmse: Float[Array, ""]  # eV/Å, force RMSE of the committee mean on the held-out labels
