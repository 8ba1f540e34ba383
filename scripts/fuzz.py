"""Feeds the readers with damaged and made-up files: each must give a value or one clear error, within bounds.

    python scripts/fuzz.py --inputs 20000

Inputs are good files (structures in six formats, configurations, models, label stores, the files of a checkpoint, what
a program answers) with bytes flipped, cut out, doubled, replaced by what parsers stumble over, or spliced with another
one; and random bytes. A fault is anything but a value, InputError or LabelError, a structure with other numbers than
a second reader finds in its file, and an input that takes longer than LIMIT or more memory than MEMORY. Faults are kept
in the folder --keep. The last line is the verdict, the exit status is 0 if there was no fault.
"""

import argparse
import collections
import io
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import ase.io
import jax
import numpy as np
from ase.build import bulk, molecule
from ase.calculators.singlepoint import SinglePointCalculator

from jaxal.config import loading
from jaxal.core.types import InputError
from jaxal.deploy import model
from jaxal.label.methods.command import answer_in
from jaxal.label.store.database import open_store
from jaxal.label.store.transfer import import_labels
from jaxal.label.task import OPEN, LabelError, Result, Task, guarded
from jaxal.run import checkpoint

sys.path.insert(0, str(Path(__file__).parent))
from second_reader import compare

LIMIT = 20.0  # s
MEMORY = 4 * 2**30  # bytes of address space, beyond what there is at the start
TOKENS = (
    *(
        b"nan",
        b"inf",
        b"-1",
        b"0",
        b"1e999",
        b"99999999999999999999",
        b"1_0",
        b"0x10",
        b"\x00",
        b"\xff\xfe",
        b"\r",
        b"\n",
    ),
    *(b"Lattice=", b"Properties=", b"species:S:1:pos:R:3", b'"', b"'", b"{", b"[", b"[" * 2000, b"{a: " * 500, b": "),
    *(b"&a [*a]", b"!!python/object/apply:os.system [true]", b"- ", b"\t", b"9" * 5000, b"Xx", b"1000000000", b"pbc="),
)
CONFIGS = (
    b"system: {file: water.xyz, charge: 0, spin: 0}\npotential: {cutoff: 4.5, channels: 8, l_max: 1}\n"
    b"explore: {name: nvt_langevin, temperature: 500 K, timestep: 0.5 fs, walkers: 2}\n"
    b"gate: {name: conformal, target_error: 0.15 eV/A, every: 10}\nlabel: {name: tblite, method: GFN2-xTB}\n",
    b"system:\n  file: water.xyz\n  supercell: [1, 1, 1]\nlabel:\n  name: command\n"
    b"  command: [cat, '{input}', '{output}']\n  method: none\nstop: {labels: 100, quiet: 2 ps, time: null}\nseed: 3\n",
)


# what a frame can say in extended XYZ
EXTENDED = (
    "3\nProperties=species:S:1:pos:R:3:REF_forces:R:3:forces:R:3 REF_energy=-13.5 energy=0.0 charge=1 spin=1\n"
    "O 0.0 0.0 0.1 0.1 -0.4 -1.3 0 0 0\nH 0.0 0.7 -0.4 0.0 0.6 0.4 0 0 0\nH 0.0 -0.7 -0.5 -0.1 -0.2 0.9 0 0 0\n\n"
    "1\nenergy=-13.6 config_type=IsolatedAtom\nH 0 0 0\n",
    '2\nLattice="4 0 0 0 5 0 0.1 0 6" Properties=species:S:1:pos:R:3:masses:R:1:move_mask:L:1:forces:R:3 '
    'free_energy=1.5 energy=1.6 virial="0.1 0.2 0.3 0.01 0.02 0.03" config_weight=0.5 pbc="T T T"\n'
    "Cu 0 0 0 63.5 F 0 0 0\nCu 1 2 3 65.0 T 0.1 0.2 0.3\n",
)


class Reader(NamedTuple):
    """What reads a file of the suffix, and good files of it."""

    suffix: str
    read: Callable[[Path], Any]
    seeds: list[bytes]


class TooLong(BaseException):
    """The limit of time; not an Exception, so that no reader takes it for one of its own."""


def readers(folder: Path) -> list[Reader]:
    """All readers; `folder` is for files on the way."""
    water, silicon = molecule("H2O"), bulk("Si", cubic=True)
    for atoms in (water, silicon):
        atoms.calc = SinglePointCalculator(atoms, energy=-1.0, forces=np.ones((len(atoms), 3)))
    ase.io.write(folder / "water.xyz", water, format="extxyz")

    def written(atoms: ase.Atoms, form: str) -> bytes:
        buffer = io.BytesIO() if form in ("traj", "cif") else io.StringIO()
        ase.io.write(buffer, atoms, format=form)
        content = buffer.getvalue()
        return content if isinstance(content, bytes) else content.encode()

    store = open_store(folder / "store.sqlite")
    task = Task(water.numbers, water.positions, *OPEN, 0, 0)
    store.put(task, Result(-1.0, np.ones((3, 3)), np.zeros((3, 3)), True, "", 1.0), "method", "1")
    store.close()
    made = model.Model(
        options=(("cutoff", 4.0), ("channels", 2), ("l_max", 1), ("layers", 1)),
        table=(1, 8),
        params={},
        reference=np.zeros(2),
        potential="equivariant",
        precision="float32",
        states=((0, 0),),
    )
    params = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), model.shapes(made, 1))
    model.save(folder / "model.npz", made._replace(params=params))

    def stored(path: Path) -> None:
        opened = open_store(path)
        try:
            list(opened.all())
            opened.counts()
        finally:
            opened.close()

    def imported(path: Path) -> None:
        import_labels(folder / "into.sqlite", path, "method", "1", 0, 0)

    def loaded(path: Path) -> None:
        loading.load(path)

    checkpoint.save(folder / "checkpoints", 1, {"a": np.arange(6.0), "b": np.zeros(3, np.int32)}, {"look": 1})
    parts = sorted(path for path in (folder / "checkpoints").rglob("*") if path.is_file())

    def restored(path: Path) -> None:
        """A checkpoint of which one file, by the bytes, is the given one."""
        whole, broken = folder / "checkpoints", folder / "input.checkpoints"
        shutil.copytree(whole, broken)
        data = path.read_bytes()
        (broken / parts[zlib.crc32(data) % len(parts)].relative_to(whole)).write_bytes(data)
        try:
            checkpoint.newest(broken)
        finally:
            shutil.rmtree(broken)

    extended = [written(atoms, "extxyz") for atoms in (water, silicon)] + [text.encode() for text in EXTENDED]
    return [
        Reader(".xyz", compare, extended),
        Reader(".vasp", compare, [written(silicon, "vasp")]),
        Reader(".cif", compare, [written(silicon, "cif")]),
        Reader(".json", compare, [written(water, "json")]),
        Reader(".pdb", compare, [written(water, "proteindatabank")]),
        Reader(".traj", compare, [written(water, "traj")]),
        Reader(".yaml", loaded, list(CONFIGS)),
        Reader(".npz", model.load, [(folder / "model.npz").read_bytes()]),
        Reader(".sqlite", stored, [(folder / "store.sqlite").read_bytes()]),
        Reader(".extxyz", imported, extended),
        Reader(".answer", lambda path: guarded(lambda task: answer_in(task, path, True))(task), extended),
        Reader(".part", restored, [path.read_bytes() for path in parts]),
    ]


def damaged(rng: random.Random, seeds: list[bytes]) -> bytes:
    """A good file made bad, or random bytes."""
    data = bytearray(rng.choice(seeds))
    if rng.random() < 0.05:
        return rng.randbytes(rng.randrange(400))
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        start = rng.randrange(len(data) + 1)
        end = min(len(data), start + rng.choice((0, 1, 1, 2, 8, 64)))
        match rng.randrange(6):
            case 0:
                data[start:end] = rng.choice(TOKENS)
            case 1:
                data[start:end] = rng.randbytes(end - start)
            case 2:
                data[start:end] = b""
            case 3:
                data[start:start] = data[start:end] * rng.choice((1, 2, 50))
            case 4:
                del data[start:]
            case _:
                other = rng.choice(seeds)
                data[start:end] = other[rng.randrange(len(other)) :][:64]
    return bytes(data)


def outcome(reader: Reader, path: Path) -> str:
    """How a file was read: a value, an error as it should be, or a fault and which."""

    def late(*_: Any) -> None:
        raise TooLong

    signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, LIMIT)
    try:
        reader.read(path)
        return "value"
    except (InputError, LabelError) as error:
        text = str(error)
        return "error" if text and "\n" not in text else f"FAULT: the error is {text[:100]!r}"
    except TooLong:
        return f"FAULT: took more than {LIMIT:g} s"
    except Exception as error:
        return f"FAULT: {type(error).__name__}: {str(error)[:150]}"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def main() -> int:
    """Runs as many inputs as asked for."""
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--inputs", type=int, default=20000, help="how many, over all readers")
    words.add_argument("--seed", type=int, default=0)
    words.add_argument("--keep", type=Path, help="folder for the inputs that are faults")
    arguments = words.parse_args()
    warnings.simplefilter("ignore")
    rng, began = random.Random(arguments.seed), time.monotonic()
    outcomes: collections.Counter[str] = collections.Counter()
    with tempfile.TemporaryDirectory(prefix="fuzz-") as name:
        folder = Path(name)
        all_readers = readers(folder)
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, resource.RLIM_INFINITY))
        for number in range(arguments.inputs):
            reader = all_readers[number % len(all_readers)]
            path = folder / f"input{reader.suffix}"
            path.write_bytes(damaged(rng, reader.seeds))
            result = outcome(reader, path)
            outcomes[result.partition(":")[0]] += 1
            if result.startswith("FAULT"):
                print(f"{number} {reader.suffix} {result}", flush=True)
                if arguments.keep is not None:
                    arguments.keep.mkdir(parents=True, exist_ok=True)
                    (arguments.keep / f"{arguments.seed}-{number}{reader.suffix}").write_bytes(path.read_bytes())
            for rest in folder.glob("input*"):
                rest.unlink()
    counts = f"{outcomes['value']} values, {outcomes['error']} errors, {outcomes['FAULT']} faults"
    passed = "FAILED" if outcomes["FAULT"] else "PASSED"
    print(
        f"{passed}: {arguments.inputs} inputs over {len(all_readers)} readers in {time.monotonic() - began:.0f} s: "
        f"{counts}"
    )
    return 1 if outcomes["FAULT"] else 0


if __name__ == "__main__":
    sys.exit(main())
