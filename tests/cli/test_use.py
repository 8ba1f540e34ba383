"""Commands that use a finished model, from files to files, and what they refuse in one line."""

import json

import ase
import closed_surfaces
import numpy as np
import pytest
from ase.io import read, write

from jaxal.cli.main import main
from jaxal.deploy import model as models

ALONG = "along={name: distance, atoms: [0, 1]}"


@pytest.fixture(scope="module")
def folder(surfaces, tmp_path_factory):
    """Models of both surfaces, and structures for them."""
    path = tmp_path_factory.mktemp("use")
    for name in ("leps", "wells"):
        models.save(path / f"{name}.npz", closed_surfaces.model(name))
    for name, x in (("left", (0.0, 0.74, 3.2)), ("right", (0.0, 2.5, 3.24)), ("guess", (0.0, 0.9, 1.9))):
        positions = [[each, 0.03 * row, 0.0] for row, each in enumerate(x)]
        write(path / f"{name}.xyz", ase.Atoms("H3", positions=positions, info={"spin": 1}), format="extxyz")
    write(path / "pair.xyz", ase.Atoms("H2", positions=[[0, 0, 0], [1.9, 0, 0]]))
    write(path / "helium.xyz", ase.Atoms("He"))
    return path


def said(capsys, *arguments):
    """What a command that succeeds prints as JSON."""
    assert main([*map(str, arguments), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def complaint(capsys, *arguments):
    """The one line of a command that fails."""
    assert main([*map(str, arguments)]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()[-1:]
    return line


def test_a_barrier_from_two_files(folder, capsys, tmp_path):
    ends = "--from", folder / "left.xyz", "--to", folder / "right.xyz"
    record = said(
        capsys, "barrier", folder / "leps.npz", *ends, "--images", 7, "--as-they-are", "--dir", tmp_path / "b"
    )
    assert record["converged"] and record["saddle"] and not record["gap"]
    assert record["forward"] == pytest.approx(record["backward"], abs=5e-3) and record["forward_spread"] > 0
    assert len(read(tmp_path / "b" / "path.xyz", ":")) == 7 and (tmp_path / "b" / "barrier.svg").is_file()
    top = read(tmp_path / "b" / "saddle.xyz")
    assert top.get_distance(0, 1) == pytest.approx(top.get_distance(1, 2), abs=2e-3)
    assert json.loads((tmp_path / "b" / "barrier.json").read_text()) == record
    again = complaint(capsys, "barrier", folder / "leps.npz", *ends, "--dir", tmp_path / "b")
    assert again == f"jaxal: error: {tmp_path / 'b'}: is not an empty folder; give a new one with --dir"

    shown = said(capsys, "vibrations", folder / "leps.npz", tmp_path / "b" / "saddle.xyz", "--dir", tmp_path / "v")
    assert shown["imaginary"] == 1 and shown["wavenumbers"][0] < 0 and shown["largest_force"] < 2e-3
    assert shown["wavenumbers"][0] == pytest.approx(record["imaginary_frequency"], rel=1e-2)
    assert shown["thermochemistry"]["pressure"] == 1.0


@pytest.mark.slow
def test_saddles_from_a_guess(folder, capsys, tmp_path):
    record = said(capsys, "saddle", folder / "leps.npz", folder / "guess.xyz", "--tries", 2, "--dir", tmp_path / "s")
    (lowest, *_) = record["saddles"]
    assert lowest["imaginary_frequency"] < 0 and lowest["barriers"][0] == pytest.approx(lowest["barriers"][1], abs=5e-3)
    assert len(read(tmp_path / "s" / "minima.xyz", ":")) == 2 * len(record["saddles"])
    assert len(read(tmp_path / "s" / "path_0.xyz", ":")) > 10


@pytest.mark.slow
def test_a_network_from_a_structure(folder, capsys, tmp_path):
    fields = "--pushes", 4, "--generations", 1, "--dir", tmp_path / "n"
    record = said(capsys, "discover", folder / "leps.npz", folder / "left.xyz", *fields, "--wary", 9)
    (step,) = record["saddles"]
    assert step["minima"] == [0, 0] and step["barriers"][0] == pytest.approx(step["barriers"][1], abs=5e-3)
    assert record["minima"][0]["molecules"] == "H + H2"
    assert len(read(tmp_path / "n" / "path_0.xyz", ":")) > 10 and (tmp_path / "n" / "network.svg").is_file()


def test_dynamics_and_its_files(folder, capsys, tmp_path):
    fields = "explore.walkers=3", "explore.temperature=300", "length=0.2", "unsure=go", ALONG
    record = said(capsys, "dynamics", folder / "wells.npz", folder / "pair.xyz", *fields, "--dir", tmp_path / "d")
    frames = read(tmp_path / "d" / "trajectory.xyz", ":")
    assert len(frames) == record["frames"] == 3 * 20 and record["ended"] == ["end of the simulation"] * 3
    distance = np.array([atoms.get_distance(0, 1) for atoms in frames])
    np.testing.assert_allclose([atoms.info["variable_distance"] for atoms in frames], distance, atol=1e-4)
    assert record["variables"]["distance"] == pytest.approx(distance.mean(), abs=1e-4)
    energy = np.array([float(closed_surfaces.well_energy(r)) for r in distance])
    np.testing.assert_allclose([atoms.info["model_energy"] for atoms in frames], energy, atol=1e-4)
    assert frames[0].arrays["velocity"].shape == (2, 3)


@pytest.mark.slow
def test_a_free_energy_and_its_files(folder, capsys, tmp_path):
    bias = "bias={name: opes, width: 0.2, barrier: 0.3, temperature: 600, variables: {name: distance, atoms: [0, 1]}}"
    fields = "explore.walkers=4", "explore.temperature=600", "length=4", bias
    where = "--split", 2.5, "--dir", tmp_path / "f"
    record = said(capsys, "free-energy", folder / "wells.npz", folder / "pair.xyz", *fields, *where)
    assert record["estimator"] == "reweighted" and record["variables"] == ["distance"] and record["units"] == ["Å"]
    assert record["difference"]["error"] > 0 and len(record["energy"]) == 40
    assert (tmp_path / "f" / "free_energy.svg").is_file() and (tmp_path / "f" / "series.npz").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("barrier none.npz --from left.xyz --to right.xyz", "none.npz: there is no such model file or run folder"),
        ("barrier leps.npz --from left.xyz --to nothing.xyz", "nothing.xyz: there is no such file"),
        ("barrier leps.npz --from left.xyz --to pair.xyz", "--to: its atoms are not those of the first; give the same"),
        ("barrier leps.npz --from left.xyz --to helium.xyz", "helium.xyz: frame 0: element He is not among those"),
        ("barrier leps.npz --from left.xyz --to right.xyz --images 2", "--images: 2 is too small; give at least 3"),
        ("saddle leps.npz guess.xyz --tries 0", "--tries: 0 is too small; give at least 1"),
        ("discover leps.npz guess.xyz --pushes 0", "--pushes: 0 is too small; give at least 1"),
        ("discover wells.npz helium.xyz", "helium.xyz: frame 0: element He is not among those"),
        ("vibrations leps.npz guess.xyz --temperature -3", "--temperature: -3 is too small; give at least 0.001"),
        (
            "dynamics wells.npz pair.xyz explore.temprature=3",
            "override 'explore.temprature=3': explore.temprature: unk",
        ),
        (
            "dynamics wells.npz pair.xyz unsure=maybe",
            "override 'unsure=maybe': unsure: maybe does not fit; give stop or",
        ),
        ("dynamics wells.npz pair.xyz explore.name=npt_nose_hoover", "explore.name: npt_nose_hoover needs a cell that"),
        ("free-energy wells.npz pair.xyz", "along: missing; give a variable, such as along="),
        ("free-energy wells.npz pair.xyz --discard 1", "--discard: 1 is too large; give a part below 1"),
        ("free-energy wells.npz pair.xyz --bins 1", "--bins: 1 is too small; give at least 2"),
    ],
)
def test_mistakes_are_told_in_one_line_before_anything_is_computed(folder, capsys, tmp_path, arguments, message):
    words = [str(folder / word) if word.endswith((".npz", ".xyz")) else word for word in arguments.split()]
    line = complaint(capsys, *words, "--dir", tmp_path / "out").replace(f"{folder}/", "")
    assert line.startswith(f"jaxal: error: {message}")
    assert not (tmp_path / "out").exists()
