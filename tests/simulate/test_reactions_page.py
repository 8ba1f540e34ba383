"""The five commands of docs/reactions.md, as they stand there: from two files to a barrier and a free energy."""

import json
import re
import shlex
from pathlib import Path

import pytest
from ase.io import read, write
from commands import here

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "reactions.md").read_text()
LESS = {  # of each, than a user would want
    "run": [
        "train.initial_steps=400",
        "train.steps=60",
        "train.final_steps=600",
        "stop.labels=24",
        "label.calibration=0",
    ],
    "free-energy": ["length=0.1"],
}
GFN2 = 3.76  # kcal/mol


@pytest.mark.slow
def test_two_files_become_a_barrier_with_an_error_bar(tmp_path):
    first, last = read(ROOT / "experiments" / "barriers" / "malonaldehyde.xyz", ":")
    write(tmp_path / "reactant.xyz", first, format="extxyz")
    write(tmp_path / "product.xyz", last, format="extxyz")
    (block,) = [
        text for text in re.findall(r"^```sh\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE) if "jaxal new" in text
    ]
    lines = block.strip().splitlines()
    assert len(lines) == 5
    for line in lines:
        words = shlex.split(line)[1:]
        done = here(*words, *LESS.get(words[0], []), folder=tmp_path)
        assert done.returncode == 0, done.stderr[-2000:]
    kcal = 23.0605
    barrier = json.loads((tmp_path / "barrier" / "barrier.json").read_text())
    assert barrier["forward"] * kcal == pytest.approx(GFN2, abs=1.0) and barrier["forward_spread"] > 0
    assert barrier["converged"] and barrier["saddle"]
    assert json.loads((tmp_path / "vibrations" / "vibrations.json").read_text())["imaginary"] == 1
    free = json.loads((tmp_path / "free-energy" / "free_energy.json").read_text())
    assert free["estimator"] == "MBAR" and free["variables"] == ["difference"]
