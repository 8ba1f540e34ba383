"""Commands for what is observed of dynamics on a finished model: distances, diffusion, spectra."""

import argparse
from typing import Any

from jaxal.cli import use_command

MOTIONS = {"explore": {"name": "nvt_nose_hoover"}}  # what moves atoms, where the fields do not say it


def add(commands: Any) -> list[argparse.ArgumentParser]:
    """Adds the commands; returns their parsers."""
    radial = commands.add_parser("radial-distribution", help="how far atoms are from each other, by pairs of elements")
    diffusion = commands.add_parser("diffusion", help="mean squared displacements and diffusion coefficients")
    spectrum = commands.add_parser("power-spectrum", help="vibrational density of states, from velocities")
    for command in (radial, diffusion, spectrum):
        use_command.takes_walkers(command)
        command.add_argument("--discard", type=float, default=0.2, help="first part of the frames (default: 0.2)")
    radial.add_argument("--reach", type=float, default=6.0, help="largest distance, Å (default: 6)")
    radial.add_argument("--bins", type=int, default=240, help="of the distance (default: 240)")
    spectrum.add_argument("--resolution", type=float, default=10.0, help="1/cm (default: 10)")
    use_command.gives(radial, _radial_distribution)
    use_command.gives(diffusion, _diffusion)
    use_command.gives(spectrum, _power_spectrum)
    return [radial, diffusion, spectrum]


def _radial_distribution(arguments: argparse.Namespace) -> None:
    from jaxal.simulate import observed

    use_command.at_least(arguments, reach=0.1, bins=2, discard=0.0)
    walkers, simulation = _begun(arguments, {})
    observed.check(walkers, simulation, "the distribution of distances", moves=False)
    where = walkers, simulation, arguments.dir, use_command.say(arguments), arguments.discard
    use_command.show(arguments, *observed.of_distances(*where, arguments.reach, arguments.bins))


def _diffusion(arguments: argparse.Namespace) -> None:
    from jaxal.simulate import observed

    use_command.at_least(arguments, discard=0.0)
    walkers, simulation = _moving(arguments, "the diffusion", spectral=False)
    where = walkers, simulation, arguments.dir, use_command.say(arguments), arguments.discard
    use_command.show(arguments, *observed.of_diffusion(*where))


def _power_spectrum(arguments: argparse.Namespace) -> None:
    from jaxal.simulate import observed

    use_command.at_least(arguments, discard=0.0, resolution=1e-3)
    walkers, simulation = _moving(arguments, "the spectrum", spectral=True)
    where = walkers, simulation, arguments.dir, use_command.say(arguments), arguments.discard
    use_command.show(arguments, *observed.of_spectrum(*where, arguments.resolution))


def _begun(arguments: argparse.Namespace, fields: dict[str, Any]) -> tuple[Any, Any]:
    """Walkers and their fields, of the model of the command."""
    from jaxal.core import devices

    devices.prepare()
    use_command.a_part(arguments, "discard")
    walkers, simulation = use_command.walkers(arguments, use_command.ready(arguments), "go", fields)
    arguments.dir.mkdir(parents=True, exist_ok=True)
    return walkers, simulation


def _moving(arguments: argparse.Namespace, what: str, spectral: bool) -> tuple[Any, Any]:
    """Walkers that tell how atoms move."""
    from jaxal.core import terminal
    from jaxal.simulate import observed

    walkers, simulation = _begun(arguments, MOTIONS)
    simulation = observed.of_motions(walkers, simulation, what, spectral)
    for caution in observed.cautions(simulation):
        terminal.complain(f"jaxal: warning: {caution}")
    return walkers, simulation
