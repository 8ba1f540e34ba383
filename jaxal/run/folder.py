"""The files of a run folder that grow as the run goes: metrics, trajectory, training set.

Of several processes the first one writes; what the others are given to write is left out.
"""

import json
import os
import platform
import sys
from collections.abc import Iterable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxal.config.loading import FILE_NAME, INPUTS, PARTIAL
from jaxal.core import devices, plugins
from jaxal.core.types import InputError
from jaxal.data import files
from jaxal.data.buffer import Buffer
from jaxal.data.frames import Frame
from jaxal.data.structure import Table, to_frame
from jaxal.program import reports
from jaxal.report.metrics import METRICS
from jaxal.run import lock

TRAJECTORY, TRAINING, VERSIONS = "trajectory.xyz", "training.xyz", "versions.json"
PACKAGES = (
    "jaxal",
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "jax-md",
    "e3nn-jax",
    "orbax-checkpoint",
    "numpy",
    "ase",
    "tblite",
)


# what there may be in the folder of a new run: a label store, and what is there before the configuration is
BEFORE = {"labels.sqlite", "labels.sqlite-shm", "labels.sqlite-wal", lock.FILE_NAME, VERSIONS, INPUTS, PARTIAL}


def refuse_used(directory: Path) -> None:
    """Raises InputError for a folder that a new run cannot have: with a run in it, or with other things."""
    if (directory / FILE_NAME).exists():
        raise InputError(
            f"{directory}: already holds a run; `jaxal resume {directory}` continues it, --dir takes a new folder"
        )
    if directory.exists() and (not directory.is_dir() or {path.name for path in directory.iterdir()} - BEFORE):
        raise InputError(f"{directory}: is not an empty folder; give a new one with --dir")


def plain(value: Any) -> Any:
    """A number as JSON has it: no NaN or infinity, at most seven digits."""
    value = value.item() if hasattr(value, "item") else value
    if isinstance(value, float):
        return float(f"{value:.7g}") if np.isfinite(value) else None
    return value


def append(directory: Path, records: Iterable[dict[str, Any]]) -> None:
    """Adds lines to metrics.jsonl."""
    if not devices.first():
        return
    with open(directory / METRICS, "a") as file:
        for record in records:
            file.write(json.dumps({name: plain(value) for name, value in record.items()}) + "\n")


def sizes(directory: Path) -> dict[str, int]:
    """Bytes of the growing files now, for `cut`."""
    return {name: (directory / name).stat().st_size for name in (METRICS, TRAJECTORY) if (directory / name).exists()}


def cut(directory: Path, sizes: dict[str, int]) -> None:
    """Back to the sizes at a checkpoint: what came after it will be written again."""
    if not devices.first():
        return
    for name in (METRICS, TRAJECTORY):
        if (directory / name).exists():
            os.truncate(directory / name, sizes.get(name, 0))


def versions(directory: Path) -> None:
    """Writes versions.json: machine, Python, packages."""
    record: dict[str, Any] = {name: metadata.version(name) for name in PACKAGES}
    device = jax.devices()[0]
    record |= {
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "device": f"{len(jax.devices())} x {device.platform} {device.device_kind}",
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
    }
    record |= {entry.dist.name: entry.dist.version for entry in plugins.entry_points() if entry.dist}
    (directory / VERSIONS).write_text(json.dumps(record, indent=1) + "\n")


def write_training(directory: Path, buffer: Buffer, table: Table, reference: np.ndarray) -> None:
    """Writes training.xyz: every label with total energy, forces, stress and whether it was held out."""
    count = int(buffer.count)
    structures, labels, held = jax.tree.map(lambda x: np.asarray(x)[:count], (*buffer[:2], buffer.held_out))
    frames = []
    for row in range(count):
        structure, label = jax.tree.map(lambda x, row=row: x[row], (structures, labels))
        frames.append(marked(to_frame(structure, table, label, reference), held[row]))
    write_frames(directory / TRAINING, frames)


def marked(frame: Frame, held: bool) -> Frame:
    """The frame, with `held_out` in its info."""
    return with_info(frame, held_out=bool(held))


def with_info(frame: Frame, **info: Any) -> Frame:
    """The frame with more in its info, in place of what it carried under these names."""
    merged = dict(frame.carried.info) | info
    return frame._replace(carried=frame.carried._replace(info=tuple(merged.items())))


def write_frames(path: Path, frames: Iterable[Frame]) -> None:
    """Extended XYZ; a file that is there is replaced only when the new one is complete."""
    files.write(path, frames, force=True)


def write_walkers(
    directory: Path,
    looks: reports.Look,
    every: int,
    first: int,
    table: Table,
    reference: np.ndarray,
    names: Sequence[str],
) -> None:
    """Appends every `every`-th look's walkers to trajectory.xyz; `first` is the number of the first look.

    `names` are those of the walkers' systems.
    """
    frames = []
    for row in range(looks.factor.shape[0]):
        if (first + row) % every:
            continue
        for walker in range(looks.energy.shape[1]):
            structure = jax.tree.map(lambda x, at=(row, walker): x[at], looks.structure)
            frame = to_frame(structure, table)
            numbers = {
                "model_energy": float(looks.energy[row, walker]) + reference_energy(structure, reference),
                "score": float(looks.score[row, walker]),
                "estimated_error": float(looks.estimate[row, walker]),
                "temperature": float(looks.temperature[row, walker]),
            }
            numbers |= {name: float(values[row, walker]) for name, values in looks.report.items()}
            # what is not known, as of a walker that was rewound at once, is left out
            known = {name: plain(value) for name, value in numbers.items() if np.isfinite(value)}
            known["supported"] = bool(looks.supported[row, walker])
            frames.append(with_info(frame, look=first + row, walker=walker, system=names[walker], **known))
    if frames:
        files.append(directory / TRAJECTORY, frames)


def reference_energy(structure: Any, reference: np.ndarray) -> float:
    """The reference energies, eV, of the atoms of one padded structure together."""
    species = np.asarray(structure.species)
    return float(np.sum(reference[species[species >= 0]]))


def label_records(
    looks: reports.Look, wall: float, ps: np.ndarray, first: int, reasons: Sequence[str], names: Sequence[str]
) -> list[dict[str, Any]]:
    """One metrics line for each label of a segment, in the order they were asked for.

    `ps` [look w] are the times of the walkers, `names` those of their systems.
    """
    lines, failures = [], iter(reasons)
    for row, slot in zip(*np.nonzero(looks.walker >= 0), strict=True):
        ok, walker = bool(looks.ok[row, slot]), int(looks.walker[row, slot])
        lines.append(
            {
                "kind": "label",
                "wall": wall,
                "label": first + len(lines),
                "ps": ps[row, walker],
                "walker": walker,
                "system": names[walker],
                "score": looks.label_score[row, slot],
                "estimated": looks.label_estimate[row, slot],
                "error": looks.label_error[row, slot],
                "rmse": looks.label_rmse[row, slot],
                "probe": bool(looks.probe[row, slot]),
                "ok": ok,
                "reason": "" if ok else next(failures, "the label failed"),
            }
        )
    return lines
