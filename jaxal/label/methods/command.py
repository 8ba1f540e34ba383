"""Labels from any program that reads and writes extended XYZ."""

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jaxal.core.errors import InputError
from jaxal.core.registry import register
from jaxal.data import extxyz, frames
from jaxal.data.lattice import letters
from jaxal.label.scratch import arguments, check_program, contents, in_scratch, run
from jaxal.label.task import (
    NO_STRESS,
    Backend,
    LabelError,
    Result,
    Task,
    check_spin,
    check_task,
    elsewhere,
    failed,
    guarded,
    has_stress,
    periodic,
)

INPUT, ANSWER = "input.xyz", "output.xyz"  # in the scratch folder


@register("labeler")
def command(
    *,
    command: Sequence[str],
    method: str,
    version: str = "",
    files: Sequence[Path] = (),
    stress: bool = True,
    keep: str = "",
) -> Backend:
    """Any program that reads a structure from an extended XYZ file and writes one with energy and forces.

    `command` is a list of arguments, started without a shell in an empty folder of its own for every label;
    `{input}` and `{output}` in it stand for the paths of the two files, and `files` are copied into that folder
    before. The input has the cell and `pbc` where it is periodic, and in its info always `charge` (e) and `spin`
    (number of unpaired electrons). The output holds the same atoms in the same order, as the last frame, with
    `energy` (eV) in its info, `forces` (eV/Å) for each atom and, if periodic, `stress` (eV/Å^3, positive under
    tension, 6 or 9 numbers in ASE's order) or `virial` (eV, minus the volume times the stress); `stress: false`
    does without. It is read as any labeled file is: a `free_energy` comes before the energy, `REF_...` before both.
    `converged=F` in its info says that the numbers mean nothing.

    `method` says what the program calculates and `version` which release of it; with the command and the contents
    of `files` they are the key of a label. So another method needs another text where the command stays the same.
    An exit status other than 0, and an output that is missing or does not fit, fail the label. The folder of a
    failed one stays, in `keep` or among the temporary files.
    """
    words = arguments(command)
    if not method.strip():
        raise LabelError("label.method: empty; say what the program calculates, such as 'PBE0/def2-SVP', for the key")
    names = [Path(file).name for file in files]
    for name in {INPUT, ANSWER} & set(names) or {name for name in names if names.count(name) > 1}:
        raise LabelError(f"label.files: {name} would be overwritten; give each file a name of its own")
    carried = contents(files, "label.files")

    def check(task: Task) -> None:
        check_task(task)
        check_spin(task)
        if words[0].removeprefix("./") not in names:
            check_program(words, "install it or give its path")

    def work(task: Task, folder: Path) -> Result:
        for file in files:
            shutil.copy(file, folder)
        places = {"{input}": str(folder / INPUT), "{output}": str(folder / ANSWER)}
        (folder / INPUT).write_text(extended_xyz(task), encoding="utf-8")
        filled = []
        for word in words:
            for mark, path in places.items():
                word = word.replace(mark, path)
            filled.append(word)
        if filled[0].removeprefix("./") in names:
            filled[0] = str(folder / filled[0])
        finished = run(filled, folder)
        if finished.failure:
            return failed(task, finished.failure)
        if not (folder / ANSWER).exists():
            return failed(task, f"{Path(words[0]).name} ended well but wrote no output, {ANSWER}")
        return answer_in(task, folder / ANSWER, stress)

    def calculate(task: Task) -> Result:
        check(task)
        return in_scratch(task, "command", keep, lambda folder: work(task, folder))

    return Backend(
        guarded(calculate),
        check,
        f"{' '.join(method.split())} command={list(words)!r} files={carried} stress={stress!r}",
        " ".join(version.split()) or "no version given",
    )


def extended_xyz(task: Task) -> str:
    """The structure as a frame of extended XYZ in Å, exact to the last bit, with `charge` and `spin` in its info."""
    from ase.data import chemical_symbols

    box = ""
    if periodic(task):
        box = 'Lattice="' + " ".join(repr(float(value)) for value in task.cell.ravel()) + '" '
    sides = " ".join(letters(task.periodic))
    lines = [
        str(len(task.numbers)),
        f'{box}Properties=species:S:1:pos:R:3 charge={int(task.charge)} spin={int(task.spin)} pbc="{sides}"',
    ]
    for number, position in zip(task.numbers, task.position, strict=True):
        lines.append(" ".join([chemical_symbols[int(number)], *(repr(float(value)) for value in position)]))
    return "\n".join(lines) + "\n"


def answer_in(task: Task, path: Path, stress: bool) -> Result:
    """The label in an extended XYZ file, or why there is none in it."""
    try:
        *_, atoms = extxyz.read(path)
        if not atoms.info.pop("converged", True):
            return failed(task, "the program says that it did not converge")
        frame = frames.of_atoms(atoms)
    except InputError as error:
        reason = str(error).removeprefix(f"{path}: ")
        return failed(task, f"the output is not extended XYZ that can be read ({reason})")
    if len(frame.numbers) != len(task.numbers) or np.any(frame.numbers != task.numbers):
        return failed(task, "the output has other atoms than the input, or in another order")
    if elsewhere(task, frame.position):
        return failed(task, "the output has other positions than the input; atoms stay in their order and place")
    energy, force, tensor = frame.numeric
    for name, unit, values in (("energy", "eV", energy), ("forces", "eV/Å", force)):
        if not np.all(np.isfinite(values)):
            return failed(task, f"the output has no {name} ({unit})")
    if not (has_stress(task) and stress):
        tensor = NO_STRESS.copy()
    elif not np.all(np.isfinite(tensor)):
        return failed(task, "the output has no stress (eV/Å^3) and no virial (eV); give label.stress=false")
    return Result(energy, force, tensor, True, "", 0.0)
