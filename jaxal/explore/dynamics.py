"""Molecular dynamics: jax-md's integrators, cut in two where the forces are needed.

An integrator of jax-md calls a force function in the middle of a step. Here neighbors and committee are
evaluated for all walkers together, outside, so a step has two halves. Both run the same jax-md step: the new
positions do not depend on the new forces, so `propose` runs it without them and keeps the positions, and
`advance` runs it again with the forces in hand. In one program XLA drops what `propose` does not use and
merges what both share: no per-atom work is done twice.

jax-md knows one unit of energy. With eV, Å and amu its time unit is `TIME_UNIT` fs and momenta are in
sqrt(eV amu). Positions are Cartesian and never wrapped. To add an integrator, write a factory
`f(*, options) -> Explorer` here under @register, which ends in `jaxal.explore.walker.explorer`: that keeps fixed
atoms where they are. The contract tests run on it by name.
"""

from collections.abc import Callable
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxal.core.jaxmd import simulate
from jaxal.core.registry import register
from jaxal.core.types import Explorer, InputError, Key, Structure, WalkerState
from jaxal.core.units import BOLTZMANN, GPA, TIME_UNIT, Unit
from jaxal.data.cell import determinant
from jaxal.explore.walker import degrees_of_freedom, explorer, free, kinetic_energy, mobile, rests

Kelvin = Annotated[float, Unit("K", 0.0)]
# a Nosé–Hoover chain has no state at zero: its masses vanish
Warm = Annotated[float, Unit("K", 0.0, exclusive=True)]
FinalWarm = Annotated[float, Unit("K", 0.0, exclusive=True)] | None
Femtosecond = Annotated[float, Unit("fs", 0.0, exclusive=True)]
FinalKelvin = Annotated[float, Unit("K", 0.0)] | None
Picosecond = Annotated[float, Unit("ps", 0.0)]
# One substep of a chain of three per half step (LAMMPS' default too). jax-md's six substeps are a loop, and two
# loops are not merged: the half that runs twice would be paid twice.
CHAIN = {"chain_length": 3, "chain_steps": 1, "sy_steps": 1}
Schedule = Callable[[Int[Array, ""]], Float[Array, ""]]


def conserved(
    walker: WalkerState, energy: Float[Array, ""], *, temperature: float = 0.0, pressure: float = 0.0
) -> Float[Array, ""]:
    """The quantity, eV, that the exact dynamics of this walker conserves.

    `energy` is the potential energy (eV) of `walker.structure`; `temperature` (K) and `pressure` (GPa) are those
    of the thermostat and the barostat, and must have been constant. Tuckerman et al., J. Phys. A 39, 5629 (2006).
    Raises TypeError for Langevin dynamics, which conserves nothing.
    """
    engine, kT = walker.engine, BOLTZMANN * temperature
    excess = degrees_of_freedom(walker) - walker.structure.position.size  # jax-md counts 3n in its invariants
    if isinstance(engine, simulate.NVEState):
        return kinetic_energy(walker) + energy
    if isinstance(engine, simulate.NVTNoseHooverState):
        total = simulate.nvt_nose_hoover_invariant(lambda _: energy, engine, kT)  # pyright: ignore[reportArgumentType]
        return total + excess * kT * engine.chain.position[0]
    if isinstance(engine, simulate.NPTNoseHooverState):
        total = simulate.npt_nose_hoover_invariant(lambda _, box: energy, engine, pressure * GPA, kT)
        return total + excess * kT * engine.thermostat.position[0]
    raise TypeError(f"{type(engine).__name__} conserves nothing")


@register("explorer")
def nve(*, temperature: Kelvin = 300.0, timestep: Femtosecond = 0.5) -> Explorer:
    """Constant energy: velocity Verlet from momenta drawn at a temperature.

    `temperature` (K) is that of the initial momenta; `timestep` in fs.
    """
    engine = simulate.nve(_given_force, _shift, _time(timestep))
    return _explorer(engine, timestep, _schedule(temperature, None, 0.0, timestep))._replace(thermostat=False)


@register("explorer")
def nvt_langevin(
    *,
    temperature: Kelvin = 300.0,
    timestep: Femtosecond = 0.5,
    friction: Annotated[float, Unit("1/fs", 0.0)] = 0.01,
    final_temperature: FinalKelvin = None,
    ramp: Picosecond = 0.0,
) -> Explorer:
    """Constant temperature by friction and noise (Langevin, BAOAB splitting).

    `temperature` in K, `timestep` in fs, `friction` in 1/fs. With `final_temperature` (K) the
    temperature goes there linearly within `ramp` ps, then stays. The center of mass starts at rest, where no atom
    is fixed, and is then thermalized with the rest. Leimkuhler and Matthews, Appl. Math. Res. Express 2013, 34 (2013).
    Raises InputError where only one of `final_temperature` and `ramp` is given.
    """
    kT = _schedule(temperature, final_temperature, ramp, timestep)
    engine = simulate.nvt_langevin(
        _given_force, _shift, _time(timestep), BOLTZMANN * temperature, gamma=friction * TIME_UNIT
    )
    return _explorer(engine, timestep, kT)


@register("explorer")
def nvt_nose_hoover(
    *,
    temperature: Warm = 300.0,
    timestep: Femtosecond = 0.5,
    tau: Femtosecond = 50.0,
    final_temperature: FinalWarm = None,
    ramp: Picosecond = 0.0,
) -> Explorer:
    """Constant temperature by a deterministic Nosé–Hoover chain.

    `temperature` in K, `timestep` in fs, `tau` the period of the chain in fs, `final_temperature` and `ramp` as in
    `nvt_langevin`. Momentum is conserved where no atom is fixed, so 3n - 3 degrees of freedom are thermalized. An open
    molecule also keeps the axis of its angular momentum: `nvt_langevin` samples it better.
    Martyna, Klein and Tuckerman, J. Chem. Phys. 97, 2635 (1992).
    Raises InputError where only one of `final_temperature` and `ramp` is given.
    """
    kT = _schedule(temperature, final_temperature, ramp, timestep)
    begin, apply = simulate.nvt_nose_hoover(
        _given_force, _shift, _time(timestep), BOLTZMANN * temperature, tau=tau / TIME_UNIT, **CHAIN
    )

    # How many momenta there are to thermalize depends on the structure, and jax-md counts 3n: nine atoms whose center
    # of mass rests would be held 12 % too hot. In its state the number is static: there it is 0, and the step, traced
    # without jax-md's own jit, has it as an array.
    def begin_uncounted(key: Key, position: Float[Array, "n 3"], **options: Any) -> Any:
        engine = begin(key, position, **options)
        return engine.set(chain=engine.chain.set(degrees_of_freedom=0))

    def apply_counted(engine: Any, *, count: Int[Array, ""], **options: Any) -> Any:
        counted = engine.set(chain=engine.chain.set(degrees_of_freedom=count))
        after = apply.__wrapped__(counted, **options)
        return after.set(chain=after.chain.set(degrees_of_freedom=0))

    return _explorer((begin_uncounted, apply_counted), timestep, kT)


@register("explorer")
def npt_nose_hoover(
    *,
    temperature: Warm = 300.0,
    timestep: Femtosecond = 0.5,
    tau: Femtosecond = 50.0,
    pressure: Annotated[float, Unit("GPa")] = 0.0,
    barostat_tau: Femtosecond = 1000.0,
    final_temperature: FinalWarm = None,
    ramp: Picosecond = 0.0,
) -> Explorer:
    """Constant temperature and pressure by Nosé–Hoover chains; the cell changes size and keeps its shape.

    `temperature` in K, `timestep` in fs, `pressure` in GPa, `tau` and `barostat_tau` the periods of the two chains
    in fs, `final_temperature` and `ramp` as in `nvt_langevin`. Needs a cell that is periodic in all three directions,
    without a vacuum, the stress, and no fixed atoms: scaling the cell moves all. Tuckerman et al., J. Phys. A 39, 5629
    (2006).
    Raises InputError where only one of `final_temperature` and `ramp` is given.
    """
    kT = _schedule(temperature, final_temperature, ramp, timestep)
    pair: tuple[Callable[..., Any], Callable[..., Any]] = simulate.npt_nose_hoover(
        _given_energy,
        _shift,
        _time(timestep),
        pressure * GPA,
        BOLTZMANN * temperature,
        barostat_kwargs={"tau": barostat_tau / TIME_UNIT, **CHAIN},
        thermostat_kwargs={"tau": tau / TIME_UNIT, **CHAIN},
    )
    begin, apply = pair

    def init(
        key: Key, structure: Structure, force: Float[Array, "n 3"], stress: Float[Array, "3 3"], step: Int[Array, ""]
    ) -> WalkerState:
        position, cell = structure.position, structure.cell
        start = _kT(kT, step, position)
        virial = _virial(cell, stress)
        engine = begin(
            key,
            position,
            _handedness(cell) * cell,
            mass=structure.mass.astype(position.dtype),
            momenta=_momenta(key, structure, start),
            kT=start,
            force=force,
            before=position,
            virial=virial,
            new_virial=virial,
        )
        atoms = position.shape[0]
        counted = engine.thermostat.set(degrees_of_freedom=3 * atoms - 3 if atoms > 1 else 3)
        engine = _cast(engine.set(thermostat=counted), position.dtype)
        return WalkerState(structure, engine, jnp.asarray(stress, position.dtype), jnp.asarray(step, jnp.int32))

    def step(walker: WalkerState, force: Float[Array, "n 3"], virial: Float[Array, ""]) -> Any:
        position = walker.structure.position
        engine = apply(
            walker.engine,
            kT=_kT(kT, walker.step, position),
            force=force,
            before=position,
            virial=_virial(walker.structure.cell, walker.stress),
            new_virial=virial,
        )
        return _cast(engine, position.dtype)

    def propose(walker: WalkerState) -> Structure:
        structure = walker.structure
        engine = step(walker, walker.engine.force, jnp.zeros((), structure.position.dtype))
        cell = _handedness(structure.cell) * engine.box
        return structure._replace(position=engine.position, cell=jnp.asarray(cell, structure.cell.dtype))

    def advance(
        walker: WalkerState, structure: Structure, force: Float[Array, "n 3"], stress: Float[Array, "3 3"]
    ) -> WalkerState:
        engine = step(walker, force, _virial(structure.cell, stress)).set(position=structure.position)
        return WalkerState(structure, engine, jnp.asarray(stress, walker.stress.dtype), walker.step + 1)

    return explorer(init, propose, advance, timestep, _bath(kT), barostat=True)


def _explorer(engine: tuple[Callable, Callable], timestep: float, kT: Schedule) -> Explorer:
    """The two halves of a jax-md (init, apply) pair that needs forces only."""
    begin, apply = engine

    def init(
        key: Key, structure: Structure, force: Float[Array, "n 3"], stress: Float[Array, "3 3"], step: Int[Array, ""]
    ) -> WalkerState:
        position = structure.position
        start = _kT(kT, step, position)
        noise, key = jax.random.split(key)
        momenta = _momenta(noise, structure, start)
        mass = structure.mass.astype(position.dtype)
        state = begin(key, position, mass=mass, momenta=momenta, kT=start, force=force)
        stress = jnp.asarray(stress, position.dtype)
        return WalkerState(structure, _cast(state, position.dtype), stress, jnp.asarray(step, jnp.int32))

    def step(walker: WalkerState, force: Float[Array, "n 3"]) -> Any:
        position = walker.structure.position
        arguments = {"kT": _kT(kT, walker.step, position), "force": force, "count": free(walker.structure)}
        return _cast(apply(walker.engine, **arguments), position.dtype)

    def propose(walker: WalkerState) -> Structure:
        return walker.structure._replace(position=step(walker, walker.engine.force).position)

    def advance(
        walker: WalkerState, structure: Structure, force: Float[Array, "n 3"], stress: Float[Array, "3 3"]
    ) -> WalkerState:
        # The given positions, not those computed again: the last bit may differ where XLA has not merged the two.
        state = step(walker, force).set(position=structure.position)
        return WalkerState(structure, state, jnp.asarray(stress, walker.stress.dtype), walker.step + 1)

    return explorer(init, propose, advance, timestep, _bath(kT))


def _given_force(position: Float[Array, "n 3"], *, force: Float[Array, "n 3"], **_: Any) -> Float[Array, "n 3"]:
    """What jax-md calls for forces: those handed through its step."""
    return jnp.asarray(force, position.dtype)


def _given_energy(
    position: Float[Array, "n 3"],
    *,
    force: Float[Array, "n 3"],
    before: Float[Array, "n 3"],
    virial: Float[Array, ""],
    new_virial: Float[Array, ""],
    perturbation: Any = 1.0,
    **_: Any,
) -> Float[Array, ""]:
    """What jax-md's barostat differentiates: linear in positions and scale, with the derivatives handed in.

    The barostat takes dU/d(scale) at the positions before the step and, with the forces, at those after it.
    """
    slope = jnp.where(jnp.all(position == before), virial, new_virial)
    return slope * (perturbation - 1.0) - jnp.sum(jnp.asarray(force, position.dtype) * position)


def _shift(position: Float[Array, "n 3"], change: Float[Array, "n 3"], **_: Any) -> Float[Array, "n 3"]:
    """Plain addition: positions stay unwrapped, also where a barostat scales them."""
    return position + change


def _time(timestep: float) -> float:
    """Timestep in jax-md's unit, as a float32 holds it: jax-md rounds it so in some places and not in others."""
    return float(np.float32(timestep / TIME_UNIT))


def _momenta(key: Key, structure: Structure, kT: Float[Array, ""]) -> Float[Array, "n 3"]:
    """Maxwell–Boltzmann momenta, sqrt(eV amu), of a system whose center of mass rests, where no atom is fixed.

    Every atom loses the velocity of the center of mass. jax-md takes the same momentum from each, which starts
    light atoms among heavy ones too hot (hydrogen in malonaldehyde by two thirds).
    """
    position, moves = structure.position, mobile(structure)[:, None]
    mass = structure.mass.astype(position.dtype)[:, None]
    momenta = jnp.sqrt(mass * kT) * jax.random.normal(key, position.shape, position.dtype)
    momenta = jnp.where(moves, momenta, 0.0)
    weight = jnp.where(moves, mass, 0.0)
    common = weight * (jnp.sum(momenta, axis=0) / jnp.maximum(jnp.sum(weight), jnp.finfo(mass.dtype).tiny))
    return momenta - jnp.where(rests(structure), common, 0.0)


def _schedule(start: float, final: float | None, duration: float, timestep: float) -> Schedule:
    """Thermal energy (eV) after a number of steps: from `start` to `final` K within `duration` ps, then constant."""
    if final is None and duration > 0:
        raise InputError(f"explore.ramp: {duration} ps, but to no temperature; give final_temperature, or no ramp")
    if final is not None and not duration > 0:
        raise InputError(f"explore.final_temperature: {final} K at no rate; give ramp > 0 ps, or only temperature")
    if final is None:
        return lambda step: jnp.asarray(BOLTZMANN * start)
    steps = duration * 1e3 / timestep
    return lambda step: BOLTZMANN * (start + (final - start) * jnp.minimum(step / steps, 1.0))


def _bath(kT: Schedule) -> Schedule:
    """Temperature of the bath, K, after a number of steps."""
    return lambda step: kT(step) / BOLTZMANN


def _kT(schedule: Schedule, step: Int[Array, ""], position: Float[Array, "n 3"]) -> Float[Array, ""]:
    return jnp.asarray(schedule(step), position.dtype)


def _handedness(cell: Float[Array, "3 3"]) -> Float[Array, ""]:
    """+1 or -1. jax-md takes the determinant for the volume; -cell has the opposite sign and the same lattice."""
    return jnp.sign(determinant(cell))


def _virial(cell: Float[Array, "3 3"], stress: Float[Array, "3 3"]) -> Float[Array, ""]:
    """dU/d(scale), eV, where all lengths are multiplied by the scale: volume times the trace of the stress."""
    return jnp.abs(determinant(cell)) * jnp.trace(jnp.asarray(stress, cell.dtype))


def _cast(engine: Any, dtype: Any) -> Any:
    """All floats of a jax-md state in one dtype: jax-md makes some of them float32, and Python floats of others."""

    def cast(leaf: Any) -> Array:
        leaf = jnp.asarray(leaf)
        return leaf.astype(dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf

    return jax.tree.map(cast, engine)
