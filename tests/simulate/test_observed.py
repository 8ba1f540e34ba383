"""What is observed of dynamics, against closed forms: springs, free particles, an ideal gas, ASE's own distances."""

import json

import ase
import closed_surfaces
import numpy as np
import pytest
from ase import units
from ase.geometry import get_distances
from ase.io import write
from closed_surfaces import FACTORS, HALF, HEIGHT, MIDDLE

from jaxal.cli.main import main
from jaxal.deploy import model as models
from jaxal.simulate import motion
from jaxal.simulate.motion import Motion
from jaxal.simulate.radial import radial

KELVIN = 300.0
THERMAL = units.kB * KELVIN


def walked(position, velocity, spacing, members=1, fixed=None, symbols=None):
    """A motion of hydrogen atoms, or of others."""
    atoms = position.shape[2]
    fixed = np.zeros(atoms, bool) if fixed is None else fixed
    mass = np.full(atoms, 1.008)
    square = mass[:, None] * (velocity * motion.TIME_UNIT) ** 2
    kelvin = square.sum(axis=(2, 3)) / (3 * atoms * units.kB)
    return Motion(spacing, mass, symbols or ("H",) * atoms, fixed, position, velocity, kelvin, members)


def test_displacements_are_those_of_all_origins():
    rng = np.random.default_rng(0)
    position = np.cumsum(rng.normal(size=(37, 2, 3, 3)), axis=0)
    naive = np.stack([np.mean(np.sum((position[lag:] - position[: 37 - lag]) ** 2, axis=-1), axis=0)
                      for lag in range(37)])  # fmt: skip
    np.testing.assert_allclose(motion.squared_displacement(position), naive, atol=1e-9)


def test_a_random_walk_diffuses_as_it_was_made_to():
    """Steps of variance s^2 along each direction: D = s^2 / (2 tau), whichever directions count."""
    rng = np.random.default_rng(1)
    step, spacing, number, members = 0.03, 10.0, 2000, 4
    moves = step * rng.normal(size=(number, 8, 60, 3))
    moves -= moves.mean(axis=2, keepdims=True)  # the center of mass rests
    moves[:, :, -1] = moves[:, :, -1] * 0
    fixed = np.arange(60) == 59
    walk = walked(np.cumsum(moves, axis=0), moves / spacing, spacing, members, fixed)
    exact = motion.CM2_PER_S * step**2 * (59 / 60) / (2 * spacing)
    for periodic in ([True] * 3, [True, True, False]):
        cell = np.array([[9.0, 0, 0], [3.0, 8.0, 0], [0, 0, 20.0]])
        along = motion.directions(cell, np.array(periodic))
        assert len(along) == sum(periodic) and np.allclose(along @ along.T, np.eye(len(along)))
        time, (element,) = motion.diffusion(walk, along)
        assert element.symbol == "H" and time[-1] == pytest.approx(0.5 * number * spacing * 1e-3)
        assert abs(element.coefficient - exact) < 4 * element.error < 0.5 * exact and element.spread > 0
    single = walk._replace(position=walk.position[:, :1], members=1)
    assert np.isnan(motion.diffusion(single, np.eye(3))[1][0].error)


def test_the_center_of_mass_does_not_diffuse():
    drift = 0.01 * np.arange(100.0)[:, None, None, None] * np.ones((1, 2, 5, 3))
    (element,) = motion.diffusion(walked(drift, 0 * drift + 1e-3, 1.0), np.eye(3))[1]
    assert abs(element.coefficient) < 1e-12


def test_a_spectrum_has_the_line_of_an_oscillator_and_counts_its_states():
    wavenumber, spacing = 2000.0, 2.0
    turn = 2 * np.pi * wavenumber * motion.PER_FS
    time = spacing * np.arange(20000)[:, None, None, None]
    phase = np.random.default_rng(2).uniform(0, 2 * np.pi, (1, 6, 1, 3))
    size = np.sqrt(2 * THERMAL / 1.008) / motion.TIME_UNIT
    states = motion.spectrum(walked(0 * (time + phase), size * np.cos(turn * time + phase), spacing, 2), 10.0)
    top = np.argmax(states.total.value)
    assert states.wavenumber[top] == pytest.approx(wavenumber, abs=10)
    assert np.trapezoid(states.total.value, states.wavenumber) == pytest.approx(3.0, rel=1e-2)
    np.testing.assert_allclose(states.elements["H"], states.total.value, rtol=1e-9)
    assert np.isfinite(states.total.error[top]) and np.isfinite(states.total.spread[top])


def test_an_ideal_gas_has_no_order_and_images_count():
    rng = np.random.default_rng(3)
    cell = np.array([[6.0, 0, 0], [2.0, 5.0, 0], [0, 1.0, 7.0]])
    frames = [
        [ase.Atoms("H4O3", scaled_positions=rng.uniform(size=(7, 3)), cell=cell, pbc=True) for _ in range(4)]
        for _ in range(60)
    ]
    edges = np.linspace(0, 8.0, 17)
    gas = radial(frames, edges, None, None)
    assert [pair.symbols for pair in gas.pairs] == [("H", "H"), ("H", "O"), ("O", "O")]
    mixed = gas.pairs[1]
    np.testing.assert_allclose(mixed.density[2:], 1.0, atol=0.15)
    assert np.all(np.abs(mixed.density[2:] - 1) < 5 * mixed.error[2:]) and np.isnan(mixed.spread).all()
    ball = 4 / 3 * np.pi * 8.0**3 / abs(np.linalg.det(cell))
    assert mixed.within[-1] == pytest.approx(3 * ball, rel=0.02)
    np.testing.assert_allclose(np.cumsum(mixed.shell * 0.5), mixed.within)


def test_an_open_structure_has_atoms_in_shells_and_members_shift_them():
    """Distances of one pair, Gaussian by a spring: a member with k (1 + x) has its shell narrower by that, to x."""
    rng = np.random.default_rng(4)
    k = 1.0
    r = 2.0 + np.sqrt(THERMAL / k) * rng.normal(size=(400, 5))
    frames = [[ase.Atoms("HO", positions=[[0, 0, 0], [x, 0, 0]]) for x in row] for row in r]
    off = 0.5 * k * (r - 2.0) ** 2
    shift = np.array([0.03 * off, -0.03 * off])
    edges = np.linspace(1.0, 3.0, 41)
    (pair,) = radial(frames, edges, KELVIN, shift).pairs
    assert pair.symbols == ("H", "O") and pair.density is None
    expected, _ = np.histogram(
        [get_distances(a.positions[:1], a.positions[1:])[1][0, 0] for row in frames for a in row], edges
    )
    np.testing.assert_allclose(pair.shell, expected / r.size / 0.05, atol=1e-9)
    middle = (edges[1:] + edges[:-1]) / 2
    u = 0.5 * k * (middle - 2.0) ** 2 / THERMAL
    np.testing.assert_allclose(pair.spread, np.abs(0.03 * pair.shell * (u - 0.5)), atol=0.03 * pair.shell.max() * 0.15)


@pytest.fixture(scope="module")
def folder(surfaces, tmp_path_factory):
    """A model of two wells, one of a chain of springs, and structures for them."""
    path = tmp_path_factory.mktemp("observed")
    for name in ("wells", "chain"):
        models.save(path / f"{name}.npz", closed_surfaces.model(name))
    write(path / "pair.xyz", ase.Atoms("H2", positions=[[0, 0, 0], [1.9, 0, 0]]))
    chain = ase.Atoms("H", cell=[closed_surfaces.SPACING, 12, 12], pbc=[True, False, False]).repeat((6, 1, 1))
    write(path / "chain.xyz", chain, format="extxyz")
    return path


def said(capsys, *arguments):
    """What a command that succeeds prints as JSON."""
    assert main([*map(str, arguments), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_the_spectrum_of_a_well_by_member(folder, capsys, tmp_path):
    """A line where the curvature has it; each member's walkers have theirs, so members differ."""
    fields = "explore.temperature=5", "explore.walkers=6", "explore.tau=100", "length=4"
    record = said(capsys, "power-spectrum", folder / "wells.npz", folder / "pair.xyz", *fields, "--dir", tmp_path / "s",
                  "--resolution", 20)  # fmt: skip
    assert record["members"] == len(FACTORS)
    states, wavenumber = np.array(record["states"]), np.array(record["wavenumber"])
    curvature = 8 * HEIGHT / HALF**2
    exact = np.sqrt(curvature * 2 / 1.008) * units._e**0.5 * 1e10 / units._amu**0.5 / (2 * np.pi * units._c * 100)
    inside = wavenumber > 100
    assert wavenumber[inside][np.argmax(states[inside])] == pytest.approx(exact, rel=0.06)
    assert record["simulation"]["walkers"] == 6 and np.isfinite(record["integral"])
    assert (tmp_path / "s" / "power_spectrum.svg").is_file() and (tmp_path / "s" / "trajectory.xyz").is_file()


def test_distances_of_a_pair(folder, capsys, tmp_path):
    fields = "explore.temperature=300", "explore.walkers=4", "length=1"
    record = said(capsys, "radial-distribution", folder / "wells.npz", folder / "pair.xyz", *fields, "--dir",
                  tmp_path / "r", "--bins", 60)  # fmt: skip
    (pair,) = record["pairs"]
    assert pair["elements"] == ["H", "H"] and pair["density"] is None and pair["within"][-1] == pytest.approx(1.0)
    top = record["distance"][int(np.argmax(pair["shell"]))]
    assert min(abs(top - (MIDDLE - HALF)), abs(top - (MIDDLE + HALF))) < 0.3 and max(pair["spread"]) > 0
    assert (tmp_path / "r" / "radial_distribution.svg").is_file()


def test_a_chain_of_springs_does_not_diffuse_and_friction_is_told(folder, capsys, tmp_path):
    fields = "explore.name=nvt_langevin", "explore.temperature=20", "explore.walkers=3", "length=0.5", "every=10"
    where = str(folder / "chain.npz"), str(folder / "chain.xyz"), "--dir", str(tmp_path / "d"), "--json"
    assert main(["diffusion", *where, *fields]) == 0
    out, err = capsys.readouterr()
    assert "explore.friction: 0.01 /fs slows atoms down" in err
    record = json.loads(out)
    (element,) = record["elements"]
    assert record["directions"] == 1 and element["symbol"] == "H" and record["members"] == 3
    assert abs(element["coefficient"]) < 1e-3 and len(record["time"]) == len(element["displacement"]["value"])
    assert (tmp_path / "d" / "diffusion.svg").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("diffusion wells.npz pair.xyz", "STRUCTURE: it repeats in no direction, and nothing diffuses"),
        ("power-spectrum wells.npz pair.xyz every=20", "every: frames 10 fs apart fold what is above 1668 cm^-1"),
        ("power-spectrum wells.npz pair.xyz length=0.5", "--resolution: 10 cm^-1 needs 3.34 ps after --discard"),
        ("power-spectrum wells.npz pair.xyz explore.name=descent", "explore.name: descent is no dynamics at one temp"),
        ("radial-distribution wells.npz pair.xyz --discard 1", "--discard: 1 is too large; give a part below 1"),
        ("radial-distribution wells.npz pair.xyz --reach 0", "--reach: 0 is too small; give at least 0.1"),
        (
            "diffusion chain.npz chain.xyz bias={name: restraint, low: 2, variables: {name: distance, atoms: [0, 1]}}",
            "bias: restraint changes how walkers move, and so the diffusion; leave it out",
        ),
        ("diffusion chain.npz chain.xyz length=1e9", "length: frames take 1"),
        ("diffusion chain.npz chain.xyz length=0.1", "length: 8 frames are too few for displacements"),
    ],
)
def test_what_tells_nothing_is_refused_in_a_line(folder, capsys, tmp_path, arguments, message, monkeypatch):
    name, model, structure, *rest = arguments.split(" ", 3)
    rest = rest[0] if rest else ""
    more = rest.split(" ") if not rest.startswith("bias") else [rest]
    paths = str(folder / model), str(folder / structure), *[text for text in more if text]
    assert main([name, *paths, "--dir", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err.strip().splitlines()[-1]
