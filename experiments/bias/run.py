"""Malonaldehyde with and without a bias towards uncertainty: labels spent until the proton is in between.

`python experiments/bias/run.py [FOLDER] [SEEDS]` runs every arm with seeds 0 to SEEDS - 1 (default 5) into
FOLDER/ARM-SEED (default runs/bias), in turn; a finished run is left as it is, one that was interrupted is gone on with.
Then, and with SEEDS = 0 at once, it writes FOLDER/outcome.json and prints the table of the runs that there are.

The transfer coordinate is q = |O4 H5| - |O3 H5|, from -0.7 Å or so in the minimum on through 0 at the barrier's top.
Every look of every walker counts. A run that ends by its label budget has less simulated time: its looks say so.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from ase.io import read

from jaxal.config.loading import load
from jaxal.core.types import InputError
from jaxal.run import driver

HERE = Path(__file__).parent
HYDROGEN, DONOR, ACCEPTOR = 5, 4, 3  # atoms of malonaldehyde.xyz
REGION = 0.3  # Å, |q| of the proton-transfer region
ARMS = {
    "none": ["bias=[]"],
    "uncertainty_driven": ["bias.name=uncertainty_driven", "bias.height=0.2", "bias.width=0.02"],
}


def coordinate(positions: np.ndarray) -> np.ndarray:
    """Transfer coordinate of frames [..., n, 3], Å."""
    hydrogen = positions[..., HYDROGEN, :]
    first, second = (np.linalg.norm(hydrogen - positions[..., oxygen, :], axis=-1) for oxygen in (DONOR, ACCEPTOR))
    return first - second


def measured(directory: Path) -> dict[str, Any]:
    """What one run's walkers saw and what it cost."""
    frames = read(directory / "trajectory.xyz", index=":")
    assert isinstance(frames, list)
    q = coordinate(np.stack([frame.positions for frame in frames]))  # a walker's last physical frame at each look
    look = np.array([frame.info["look"] for frame in frames])
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    labels = [(line["ps"], line["label"]) for line in lines if line["kind"] == "label"]
    per_look = 20 * 0.5e-3  # ps
    inside = np.flatnonzero(np.abs(q) < REGION)
    first = float(look[inside[0]] + 1) * per_look if inside.size else None
    before = [label for ps, label in labels if first is not None and ps < first - per_look / 2]
    return {
        "ps": float(look.max() + 1) * per_look,
        "labels": max((label for _, label in labels), default=0),
        "low": float(q.min()),
        "high": float(q.max()),
        "inside": float(np.mean(np.abs(q) < REGION)),
        "first_ps": first,
        "first_labels": None if first is None else max(before, default=40),  # forty before the dynamics
    }


def main(folder: Path, seeds: int) -> None:
    """Runs what is missing, then measures everything that is finished."""
    for seed in range(seeds):
        for arm, overrides in ARMS.items():
            directory = folder / f"{arm}-{seed}"
            if (directory / "config.yaml").exists():
                try:
                    driver.resume(directory)
                except InputError as error:
                    print(f"{directory}: {error}")
            else:
                driver.start(load(HERE / "config.yaml", [*overrides, f"seed={seed}"]), directory)
    outcome = {
        path.parent.name: measured(path.parent)
        for path in sorted(folder.glob("*/model.npz"))
        if (path.parent / "trajectory.xyz").exists()
    }
    (folder / "outcome.json").write_text(json.dumps(outcome, indent=1) + "\n")
    for name, figures in outcome.items():
        print(name, json.dumps(figures))


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path("runs/bias"), int(sys.argv[2]) if len(sys.argv) > 2 else 5)
