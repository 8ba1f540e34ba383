"""`jaxal new`: a commented configuration for a structure, checked, and the next command."""

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from jaxal.core import terminal
from jaxal.core.errors import InputError

if TYPE_CHECKING:
    import ase

    from jaxal.config.proposal import Method
    from jaxal.data.frames import Frame


USUAL = 500.0  # K


def add(new: argparse.ArgumentParser) -> None:
    """The arguments of the command."""
    new.add_argument("structure", metavar="STRUCTURE", type=Path, help="a structure, any format ASE reads")
    method = "GFN2-xTB (default), pbe0/def2-svp, psi4:mp2/cc-pvtz, espresso, ...: `jaxal list labeler`"
    new.add_argument("--method", default="GFN2-xTB", help=method)
    new.add_argument("--reaction", metavar="PRODUCT", type=Path, help="the same atoms on the other side of a reaction")
    new.add_argument("--charge", type=int, help="e (default: what the file says, else asked for)")
    new.add_argument("--spin", type=int, help="number of unpaired electrons; likewise")
    new.add_argument("--temperature", type=float, help=f"of the walkers, K (default: {USUAL:g})")
    new.add_argument("--out", type=Path, metavar="FILE", help="the configuration (default: STRUCTURE.yaml)")
    new.add_argument("--no-label", action="store_true", help="do not calculate a label to see what it costs")
    new.add_argument("--force", action="store_true", help="replace --out if it is there")
    new.set_defaults(command=_new)


def _new(arguments: argparse.Namespace) -> None:
    from jaxal.config.proposal import configuration, method_of
    from jaxal.data import files, frames

    method = method_of(arguments.method)
    out = arguments.out or Path(f"{arguments.structure.stem}.yaml")
    states = out.with_name(f"{out.stem}_states.xyz")
    if arguments.temperature is not None and not arguments.temperature > 0:
        raise InputError(f"--temperature: {arguments.temperature:g} is too small; give K, such as {USUAL:g}")
    if arguments.temperature is not None and arguments.reaction is not None:
        raise InputError("--temperature: a band, which --reaction proposes, has none; leave one of the two out")
    temperature = arguments.temperature or USUAL
    for path in (out, *([states] if arguments.reaction else [])):
        if path.exists() and not arguments.force:
            raise InputError(f"{path}: is there already; --force replaces it")
        if not path.parent.is_dir():
            raise InputError(f"{path}: there is no folder {path.parent}; make it, or give another path")
    sides = [_first(path) for path in (arguments.structure, arguments.reaction) if path is not None]
    _alike(sides, arguments)
    sides = _with_electrons(sides, arguments)
    starts = [frames.to_atoms(frames.stripped(frame)) for frame in sides]
    workers = max(1, (os.cpu_count() or 2) - 1)

    def text(file: Path, seconds: float | None = None) -> str:
        name = Path(os.path.relpath(file, out.parent)).as_posix()
        return configuration(starts, name, method, temperature=temperature, seconds=seconds, workers=workers)

    with tempfile.TemporaryDirectory(prefix="jaxal-") as folder:  # until all is well nothing is written or replaced
        source = Path(folder) / states.name if arguments.reaction else arguments.structure
        if arguments.reaction:
            files.write(source, sides)
        seconds = None if method.missing else _cost(text(source), out, not arguments.no_label)
    if arguments.reaction:
        files.write(states, sides, arguments.force)
    part = out.with_name(f"{out.name}.part")
    try:
        part.write_text(text(states if arguments.reaction else arguments.structure, seconds), encoding="utf-8")
        part.replace(out)
    except OSError as error:
        raise InputError(f"{out}: cannot be written ({error.strerror})") from None
    print(_closing(out, method, starts, seconds))


def _first(path: Path) -> "Frame":
    """The first structure of a file; a word about the others."""
    from jaxal.data import files

    frames = files.read(path, labeled=False)
    if len(frames) > 1:
        print(f"{path}: holds {len(frames)} frames; the first is taken, system.index chooses others")
    return frames[0]


def _with_electrons(sides: list["Frame"], arguments: argparse.Namespace) -> list["Frame"]:
    """The sides with their charge and spin: of the command, the file, or who is asked. Raises InputError for others."""
    from jaxal.data import frames
    from jaxal.data.electrons import formula

    said = {name: getattr(arguments, name) for name in ("charge", "spin")}
    for name in said:
        if said[name] is None:
            said[name] = next((getattr(side, name) for side in sides if getattr(side, name) is not None), None)
    atoms = formula(sides[0].numbers)
    if said["charge"] is None:
        said["charge"] = _asked(f"charge of {atoms}, e", 0)
    odd = (int(sides[0].numbers.sum()) - said["charge"]) % 2
    if said["spin"] is None:
        if odd and not sys.stdin.isatty() and not sides[0].periodic.any():
            what = f"{atoms} with charge {said['charge']:+d} has an odd number of electrons"
            raise InputError(f"--spin: {what}; give the number of unpaired ones, such as 1, or another --charge")
        said["spin"] = _asked(f"unpaired electrons of {atoms} with charge {said['charge']:+d}", odd)
    for path, side in zip((arguments.structure, arguments.reaction), sides, strict=False):
        for name, value in said.items():
            if (own := getattr(side, name)) is not None and own != value:
                raise InputError(f"{path}: its {name} is {own}, elsewhere it is {value}; give the same")
    try:
        return [frames.with_electrons(side, said["charge"], said["spin"], "") for side in sides]
    except InputError as error:
        raise InputError(f"--{str(error).lstrip('.')}") from None


def _asked(what: str, default: int) -> int:
    """A whole number from the terminal; the default, with a word, where nobody sits at one."""
    if not sys.stdin.isatty():
        print(f"{what}: {default}, nobody says otherwise")
        return default
    while True:
        try:
            answer = input(f"{what} [{default}]: ").strip()
            return int(answer) if answer else default
        except EOFError:
            return default
        except ValueError:
            terminal.complain("a whole number, please")


def _alike(sides: "Sequence[Frame]", arguments: argparse.Namespace) -> None:
    """Raises InputError where the two sides of a reaction are not the same atoms in the same order."""
    import numpy as np

    from jaxal.data.electrons import formula

    first, *others = sides
    for other in others:
        if np.array_equal(first.numbers, other.numbers) and np.array_equal(first.periodic, other.periodic):
            continue
        if formula(first.numbers) != formula(other.numbers):
            what = f"{formula(first.numbers)} is no {formula(other.numbers)}; both sides need all atoms"
        elif not np.array_equal(first.periodic, other.periodic):
            what = "they are not periodic in the same directions"
        else:
            row = int(np.flatnonzero(first.numbers != other.numbers)[0])
            what = f"they have other elements from atom {row} on; give the same order"
        raise InputError(f"--reaction: {arguments.structure} and {arguments.reaction} differ: {what}")


def _cost(text: str, out: Path, measured: bool) -> float | None:
    """Checks a configuration, warns as `jaxal check` does, and says how long one label takes, s.

    Raises InputError where it does not fit, and where the label fails.
    """
    from jaxal.cli.label_command import one_label
    from jaxal.config import yaml12
    from jaxal.config.check import check
    from jaxal.config.loading import parse
    from jaxal.config.systems import populations

    config = parse(yaml12.parse(text, str(out)), out.parent)
    for warning in check(config):
        terminal.complain(f"jaxal: warning: {warning}")
    if not measured or config.label.part.kind == "oracle":
        return None
    return one_label(config, populations(config)[0])[1].seconds


def _closing(out: Path, method: "Method", starts: "Sequence[ase.Atoms]", seconds: float | None) -> str:
    """What was written, and the next command."""
    from jaxal.config.proposal import PATH, labels

    number = PATH if len(starts) > 1 else labels(starts[0])
    if method.missing:
        fields = ", ".join(f"label.{option.name}" for option in method.missing)
        return f"{out}: fill in {fields}; then `jaxal label {out} --check` tries the method with one label"
    cost = "" if seconds is None else f", one label takes {seconds:.3g} s"
    return f"{out}: up to {number} labels to learn from{cost}\nnext: jaxal run {out}"
