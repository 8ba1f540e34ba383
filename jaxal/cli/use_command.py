"""Commands that use a finished model: barriers, saddles, networks, vibrations, dynamics, free energies."""

import argparse
import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import ase

    from jaxal.deploy.model import Model
    from jaxal.simulate.dynamics import Prepared

OVERRIDES = "such as explore.temperature=300, bias.name=metadynamics or 'length=20 ps'; see docs/reactions.md"


def add(commands: Any) -> list[argparse.ArgumentParser]:
    """Adds the commands; returns their parsers."""
    barrier = commands.add_parser("barrier", help="the barrier between two structures on a finished potential")
    _model(barrier)
    barrier.add_argument("--from", dest="start", metavar="FILE", type=Path, required=True, help="structure on one side")
    barrier.add_argument("--to", dest="end", metavar="FILE", type=Path, required=True, help="that on the other side")
    barrier.add_argument(
        "--via", metavar="FILE", type=Path, help="structures in between, in their order, to begin with"
    )
    barrier.add_argument("--images", type=int, default=9, help="of the band, both ends included (default: 9)")
    barrier.add_argument("--converged", type=float, default=0.02, help="largest pull on an atom, eV/Å (default: 0.02)")
    barrier.add_argument("--steps", type=int, default=2000, help="of the band at most (default: 2000)")
    barrier.add_argument("--as-they-are", action="store_true", help="do not relax the two structures first")
    gives(barrier, _barrier)

    saddle = commands.add_parser("saddle", help="saddles around structures, and the minima on both sides of each")
    _model(saddle)
    saddle.add_argument("structure", metavar="STRUCTURE", type=Path, help="guesses of saddles, or minima; any format")
    saddle.add_argument("--tries", type=int, default=16, help="dimers, from the structures in turn (default: 16)")
    saddle.add_argument("--steps", type=int, default=800, help="of the dimers at most (default: 800)")
    saddle.add_argument("--jolt", type=float, default=0.1, help="first random displacement, Å (default: 0.1)")
    saddle.add_argument("--seed", type=int, default=0, help="of the displacements and directions")
    gives(saddle, _saddle)

    discover = commands.add_parser("discover", help="minima and saddles around structures: a network of reactions")
    _model(discover)
    discover.add_argument(
        "structure", metavar="STRUCTURE", type=Path, help="where it begins, one or several; any format"
    )
    discover.add_argument("--generations", type=int, default=2, help="of minima that are begun from (default: 2)")
    discover.add_argument("--pushes", type=int, default=64, help="walkers at a time (default: 64)")
    discover.add_argument(
        "--collision", type=float, default=10.0, help="that the artificial force grows to, eV (default: 10)"
    )
    discover.add_argument("--ceiling", type=float, default=6.0, help="over the lowest start, eV (default: 6)")
    discover.add_argument("--wary", type=float, default=1.0, help="members may differ by, eV/Å (default: 1)")
    discover.add_argument("--seed", type=int, default=0, help="of the first displacements")
    gives(discover, _discover)

    vibrations = commands.add_parser("vibrations", help="frequencies and thermochemistry from the exact Hessian")
    _model(vibrations)
    vibrations.add_argument("structure", metavar="STRUCTURE", type=Path, help="a minimum or a saddle, any format")
    vibrations.add_argument("--relax", action="store_true", help="to the nearest minimum first")
    vibrations.add_argument("--temperature", type=float, default=298.15, help="K (default: 298.15)")
    vibrations.add_argument("--pressure", type=float, default=1.0, help="of the ideal gas, bar (default: 1)")
    vibrations.add_argument("--symmetry", type=int, default=1, help="symmetry number of the molecule (default: 1)")
    gives(vibrations, _vibrations)

    phonons = commands.add_parser("phonons", help="dispersion, density of states and thermal properties, by phonopy")
    _model(phonons)
    phonons.add_argument("structure", metavar="STRUCTURE", type=Path, help="a crystal, a slab or a wire, any format")
    size = {"nargs": 3, "type": int, "metavar": ("A", "B", "C")}
    phonons.add_argument("--supercell", required=True, **size, help="repetitions for the force constants")
    phonons.add_argument("--relax", action="store_true", help="the atoms to their minimum first, the cell as it is")
    phonons.add_argument("--temperature", type=float, default=300.0, help="of what is printed, K (default: 300)")
    gives(phonons, _phonons)

    dynamics = commands.add_parser("dynamics", help="many walkers on a finished potential, any explorer and biases")
    free_energy = commands.add_parser("free-energy", help="a free energy along variables, with intervals")
    for command in (dynamics, free_energy):
        takes_walkers(command)
    gives(dynamics, _dynamics)
    free_energy.add_argument("--split", type=float, help="value of the variable between two sides, to be compared")
    free_energy.add_argument("--bins", type=int, default=40, help="along each variable (default: 40)")
    free_energy.add_argument("--discard", type=float, default=0.2, help="first part of the frames (default: 0.2)")
    gives(free_energy, _free_energy)
    return [barrier, saddle, discover, vibrations, phonons, dynamics, free_energy]


def takes_walkers(command: argparse.ArgumentParser) -> None:
    """Adds what says which walkers move on which model."""
    _model(command)
    command.add_argument("structure", metavar="STRUCTURE", type=Path, help="where walkers start, any format")
    command.add_argument("overrides", metavar="key.sub=value", nargs="*", help=OVERRIDES)
    command.add_argument("--config", metavar="FILE", type=Path, help="YAML file with the same fields")


def _model(command: argparse.ArgumentParser) -> None:
    command.add_argument("model", metavar="MODEL", type=Path, help="run folder or model file")


def gives(command: argparse.ArgumentParser, run: Any) -> None:
    """Adds where results go, and what makes them."""
    name = run.__name__.lstrip("_").replace("_", "-")
    command.add_argument("--dir", type=Path, default=Path(name), help=f"folder for the results, new (default: {name})")
    command.add_argument("--json", action="store_true", help="print JSON")
    command.set_defaults(command=run)


def ready(arguments: argparse.Namespace) -> "Model":
    """The model, and a folder for what comes; raises InputError where either cannot be."""
    from jaxal.core import compilation
    from jaxal.core.errors import InputError
    from jaxal.deploy import model as models

    compilation.keep()
    folder = arguments.dir
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder}: is not an empty folder; give a new one with --dir")
    return models.load(arguments.model)


def _single(model: "Model", path: Path, option: str) -> "ase.Atoms":
    from jaxal.core.errors import InputError
    from jaxal.simulate.surface import structures

    read = structures(model, path)
    if len(read) > 1:
        raise InputError(f"{option}: {path} holds {len(read)} structures; give a file of one")
    return read[0]


def at_least(arguments: argparse.Namespace, **least: float) -> None:
    """Raises InputError for numbers that are too small."""
    from jaxal.core.errors import InputError

    for name, bound in least.items():
        if not (value := getattr(arguments, name)) >= bound:
            raise InputError(f"--{name.replace('_', '-')}: {value:g} is too small; give at least {bound:g}")


def a_part(arguments: argparse.Namespace, name: str) -> None:
    """Raises InputError for what is no part of a whole that leaves something."""
    from jaxal.core.errors import InputError

    if not (value := getattr(arguments, name)) < 1:
        raise InputError(f"--{name}: {value:g} is too large; give a part below 1, such as 0.2")


def show(arguments: argparse.Namespace, record: dict[str, Any], text: str) -> None:
    """Prints what came out."""
    print(json.dumps(record, indent=1, allow_nan=False) if arguments.json else f"{text}\n{arguments.dir}: all of it")


def say(arguments: argparse.Namespace) -> Any:
    """What says how far a command has come."""
    from jaxal.core import terminal

    return lambda text: terminal.complain(f"jaxal: {text}")


def _barrier(arguments: argparse.Namespace) -> None:
    from jaxal.simulate import barrier, outcome
    from jaxal.simulate.surface import structures

    at_least(arguments, images=3, converged=1e-4, steps=1)
    model = ready(arguments)
    start, end = _single(model, arguments.start, "--from"), _single(model, arguments.end, "--to")
    result = barrier.barrier(
        model,
        start,
        end,
        via=structures(model, arguments.via) if arguments.via else (),
        images=arguments.images,
        converged=arguments.converged,
        steps=arguments.steps,
        relax=not arguments.as_they_are,
        say=say(arguments),
    )
    show(arguments, *outcome.of_barrier(arguments.dir, result))


def _saddle(arguments: argparse.Namespace) -> None:
    from jaxal.simulate import outcome, saddle
    from jaxal.simulate.surface import structures

    at_least(arguments, tries=1, steps=1, jolt=0.0, seed=0)
    model = ready(arguments)
    starts = structures(model, arguments.structure)
    result = saddle.search(
        model,
        starts,
        tries=max(arguments.tries, len(starts)),
        steps=arguments.steps,
        jolt=arguments.jolt,
        seed=arguments.seed,
        say=say(arguments),
    )
    show(arguments, *outcome.of_search(arguments.dir, result))


def _discover(arguments: argparse.Namespace) -> None:
    from jaxal.simulate import atlas, discovery
    from jaxal.simulate.surface import structures

    least = {"collision": 1e-3, "ceiling": 1e-3, "wary": 1e-6}
    at_least(arguments, generations=1, pushes=1, seed=0, **least)
    model = ready(arguments)
    result = discovery.network(
        model,
        structures(model, arguments.structure),
        pushes=arguments.pushes,
        generations=arguments.generations,
        collision=arguments.collision,
        ceiling=arguments.ceiling,
        wary=arguments.wary,
        seed=arguments.seed,
        say=say(arguments),
    )
    show(arguments, *atlas.of_network(arguments.dir, result))


def _phonons(arguments: argparse.Namespace) -> None:
    from jaxal.simulate import outcome, phonons

    at_least(arguments, temperature=0.0)
    model = ready(arguments)
    atoms = _single(model, arguments.structure, "STRUCTURE")
    result = phonons.phonons(model, atoms, tuple(arguments.supercell), arguments.relax, arguments.temperature)
    show(arguments, *outcome.of_phonons(arguments.dir, *result, arguments.temperature))


def _vibrations(arguments: argparse.Namespace) -> None:
    from jaxal.simulate import outcome, vibrations

    at_least(arguments, temperature=1e-3, pressure=1e-12, symmetry=1)
    model = ready(arguments)
    atoms = _single(model, arguments.structure, "STRUCTURE")
    if arguments.relax:
        atoms = vibrations.relaxed(model, atoms)
    oscillators = vibrations.vibrations(model, atoms)
    state = arguments.temperature, arguments.pressure, arguments.symmetry
    thermal = vibrations.thermochemistry(model, atoms, oscillators, *state)
    show(arguments, *outcome.of_vibrations(arguments.dir, atoms, oscillators, thermal))


def walkers(
    arguments: argparse.Namespace, model: "Model", unsure: Any, fields: dict[str, Any] | None = None
) -> "tuple[Prepared, Any]":
    """What a simulation is of, checked, and its fields: `unsure` where they do not say it, `fields` without a file."""
    from jaxal.config.loading import load, parse
    from jaxal.config.simulation import Simulation
    from jaxal.core import terminal
    from jaxal.simulate import dynamics
    from jaxal.simulate.surface import structures

    if arguments.config is not None:
        simulation = load(arguments.config, arguments.overrides, Simulation)
    else:
        simulation = parse(fields or {}, ".", Simulation, arguments.overrides)
    simulation = dataclasses.replace(simulation, unsure=simulation.unsure or unsure)
    starts = structures(model, arguments.structure)
    moving = dynamics.prepared(model, simulation, starts, arguments.structure)
    for caution in moving.cautions:
        terminal.complain(f"jaxal: warning: {caution}")
    return moving, simulation


def _dynamics(arguments: argparse.Namespace) -> None:
    from jaxal.core import devices
    from jaxal.simulate import dynamics, outcome

    devices.prepare()
    model = ready(arguments)
    moving, simulation = walkers(arguments, model, "stop")
    arguments.dir.mkdir(parents=True, exist_ok=True)
    series, _ = dynamics.run(moving, simulation, arguments.dir, say(arguments))
    show(arguments, *outcome.of_dynamics(arguments.dir, dynamics.record(moving, simulation, series), series))


def _free_energy(arguments: argparse.Namespace) -> None:
    from jaxal.core import devices
    from jaxal.simulate import dynamics, outcome, sampling

    devices.prepare()
    at_least(arguments, bins=2, discard=0.0)
    a_part(arguments, "discard")
    model = ready(arguments)
    moving, simulation = walkers(arguments, model, "go")
    sampling.check(moving, simulation)
    arguments.dir.mkdir(parents=True, exist_ok=True)
    series, kept = dynamics.run(moving, simulation, arguments.dir, say(arguments), sampling.OPINIONS)
    record = dynamics.record(moving, simulation, series)
    outcome.of_dynamics(arguments.dir, record, series)
    question = sampling.Question(arguments.split, arguments.bins, arguments.discard)
    result = sampling.answer(moving, simulation, series, kept, question)
    show(arguments, *outcome.of_free_energy(arguments.dir, result, record))
