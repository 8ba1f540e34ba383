"""Files from strangers: any bytes are a value or one clear error, soon. What once was neither is here to stay."""

import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from ase.build import bulk, molecule
from ase.io import write

from jaxal.config import yaml12
from jaxal.config.loading import load
from jaxal.core.types import InputError
from jaxal.data.files import read
from jaxal.deploy import model
from jaxal.label.methods.command import answer_in
from jaxal.label.store.database import open_store
from jaxal.label.store.transfer import import_labels
from jaxal.label.task import OPEN, LabelError, Result, Task

FUZZ = Path(__file__).parent.parent / "scripts" / "fuzz.py"
FRAME = "3\nProperties=species:S:1:pos:R:3{more}\nO 0 0 0\nH 0 0 1\nH 0 1 0\n"
# ASE read each of these for longer than anybody waits, or into all the memory there was
ENDLESS = {
    "a number of atoms beyond the file": ("3" * 30 + "\n", "lines follow"),
    "the same in a later frame": (FRAME.format(more="") + "99999999\n\n", "says that it has 99999999 atoms"),
    "a billion columns": (FRAME.format(more=":forces:R:1000000000"), "1000000000 columns"),
    "a number of columns with many digits": (FRAME.format(more=":forces:R:" + "9" * 5000), "columns"),
    "less than no atoms": ("-5\n\n", "-5 atoms"),
}


@pytest.mark.parametrize("name", ENDLESS)
def test_extended_xyz_that_lies_about_its_size_is_refused_at_once(tmp_path, name):
    text, message = ENDLESS[name]
    path = tmp_path / "lies.xyz"
    path.write_text(text)
    began = time.monotonic()
    with pytest.raises(InputError, match=message):
        read(path)
    with pytest.raises(InputError, match=message):
        import_labels(tmp_path / "into.sqlite", path, "method", "1", 0, 0)
    assert time.monotonic() - began < 5 and not (tmp_path / "into.sqlite").exists()


def test_good_files_are_not_refused(tmp_path):
    frames = [molecule("CH3CH2OH"), molecule("H2O")]
    for name, options in (("a.xyz", {}), ("b.extxyz", {}), ("c.xyz", {"format": "xyz"}), ("d.xyz.gz", {})):
        write(tmp_path / name, frames, **options)
        assert len(read(tmp_path / name)) == 2
    silicon = bulk("Si", cubic=True)
    write(tmp_path / "POSCAR", silicon, format="vasp")
    text = (tmp_path / "POSCAR").read_text().split("\n", 1)[1]
    (tmp_path / "POSCAR").write_text(f"1000000000\n{text}")  # a title that looks like a number of atoms
    assert len(read(tmp_path / "POSCAR")[0].numbers) == 8


@pytest.mark.parametrize("name", ENDLESS)
def test_an_answer_of_a_program_that_lies_about_its_size_has_failed_at_once(tmp_path, name):
    (tmp_path / "answer").write_text(ENDLESS[name][0])  # its name does not say what it is
    water = molecule("H2O")
    began = time.monotonic()
    result = answer_in(Task(water.numbers, water.positions, *OPEN, 0, 0), tmp_path / "answer", True)
    assert not result.ok and ENDLESS[name][1] in result.reason and time.monotonic() - began < 5


@pytest.mark.parametrize(
    "text", [f"system: {{file: {'x' * 3000}.xyz}}", f"seed: {'9' * 5000}", "system: {file: ~nobody-here/a.xyz}"]
)
def test_configurations_that_the_system_refuses_are_one_line(tmp_path, text):
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(InputError) as error:
        load(tmp_path / "config.yaml")
    assert "\n" not in str(error.value) and len(str(error.value)) < 1000


@pytest.mark.parametrize("text", ["[" * 5000, "{a: " * 3000, "a: &x [*x]\nb: *x", "!!python/object/apply:os.getcwd []"])
def test_yaml_that_nests_or_makes_objects_is_one_line(tmp_path, text):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(InputError) as error:
        load(path)
    assert "\n" not in str(error.value)
    if "python" in text:
        with pytest.raises(InputError, match="not valid YAML"):
            yaml12.parse(text, "text")


def test_a_damaged_model_or_store_is_one_line(tmp_path):
    options = (("channels", 2), ("l_max", 1), ("layers", 1))
    made = model.Model("equivariant", options, (1, 8), {}, np.zeros(2), "float32", ((0, 0),))
    params = jax.tree.map(lambda x: np.ones(x.shape, x.dtype), model.shapes(made, 1))
    model.save(tmp_path / "model.npz", made._replace(params=params))
    assert model.load(tmp_path / "model.npz").table == (1, 8)
    atoms = molecule("H2O")
    store = open_store(tmp_path / "store.sqlite")
    for shift in range(40):
        task = Task(atoms.numbers, atoms.positions + shift, *OPEN, 0, 0)
        store.put(task, Result(-1.0, np.ones((3, 3)), np.zeros((3, 3)), True, "", 1.0), "method", "1")
    store.close()
    rng = np.random.default_rng(0)
    wrong = 0
    for name in ("model.npz", "store.sqlite"):
        good = (tmp_path / name).read_bytes()
        for _ in range(60):
            data = bytearray(good)
            for place in rng.integers(0, len(data), 30):
                data[place] = rng.integers(0, 256)
            path = tmp_path / f"bad {name}"
            path.write_bytes(data)
            try:
                if name == "model.npz":
                    model.load(path)
                else:
                    opened = open_store(path)
                    try:
                        list(opened.all())
                        opened.counts()
                    finally:
                        opened.close()
            except (InputError, LabelError) as error:
                assert "\n" not in str(error)
                wrong += 1
    assert wrong > 20


def test_fifteen_hundred_made_up_files():
    process = subprocess.run([sys.executable, FUZZ, "--inputs", "1500", "--seed", "3"], capture_output=True, text=True)
    assert process.returncode == 0, process.stdout + process.stderr
    assert process.stdout.splitlines()[-1].startswith("PASSED: 1500 inputs")
