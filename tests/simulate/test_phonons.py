"""Phonons of a chain of springs, against what they are in closed form."""

import json

import ase
import numpy as np
import pytest
from ase import units
from ase.io import write
from closed_surfaces import FACTORS, SPACING, SPRING, model

from jaxal.core.errors import InputError
from jaxal.deploy import model as models
from jaxal.simulate import outcome
from jaxal.simulate.phonons import phonons

pytest.importorskip("phonopy", reason="phonopy is not installed (jaxal[phonons])")
pytestmark = pytest.mark.usefixtures("surfaces")
CHAIN = ase.Atoms("H", positions=[[0, 0, 0]], cell=[SPACING, 12, 12], pbc=[True, False, False])
MASS = CHAIN.get_masses()[0]
HIGHEST = 2 * np.sqrt(SPRING * units._e * 1e20 / (MASS * units._amu)) / (2e12 * np.pi)  # THz


def test_a_chain_has_the_dispersion_of_springs(tmp_path):
    structure, lattice = phonons(model("chain"), CHAIN, (4, 1, 1))
    (segment,) = lattice.segments
    assert segment.names == ("G", "X") and segment.distance[-1] == pytest.approx(0.5 / SPACING)
    wave = np.linspace(0, np.pi / 2, len(segment.distance))
    np.testing.assert_allclose(segment.frequency[:, -1], HIGHEST * np.sin(wave), atol=2e-4 * HIGHEST)
    assert np.abs(segment.frequency[:, :2]).max() < 0.1, "nothing holds it across"
    np.testing.assert_allclose(segment.spread[1:, -1], np.std(np.sqrt(FACTORS)) * segment.frequency[1:, -1], rtol=1e-3)
    assert lattice.force < 1e-6 and lattice.atoms == lattice.displaced == 1
    # the mean of half a quantum over the zone: that of the sine is 2 / pi
    zero_point = 0.5 * units._hplanck * HIGHEST * 1e12 / units._e * 2 / np.pi
    assert lattice.free[0] == pytest.approx(zero_point, rel=5e-3)
    hot = phonons(model("chain"), CHAIN, (4, 1, 1), temperature=3000.0)[1]
    assert hot.temperature[-1] == 3000 and hot.capacity[-1] > lattice.capacity[-1] > 0
    record, text = outcome.of_phonons(tmp_path / "out", structure, lattice, 300.0)
    assert json.loads((tmp_path / "out" / "phonons.json").read_text()) == record
    assert "stability    no imaginary frequency" in text and f"to {HIGHEST:.3f}" in text
    assert (tmp_path / "out" / "phonons.svg").stat().st_size > 1000


def test_a_chain_under_pressure_is_not_stable(tmp_path):
    """Pressed springs push their atoms aside."""
    pressed = CHAIN.copy()
    pressed.set_cell([0.95 * SPACING, 12, 12], scale_atoms=True)
    structure, lattice = phonons(model("chain"), pressed, (4, 1, 1))
    assert lattice.lowest < -10
    assert "no minimum" in outcome.of_phonons(tmp_path / "out", structure, lattice, 300.0)[1]


@pytest.mark.parametrize(
    ("change", "supercell", "message"),
    [
        (lambda a: a.set_pbc(False), (2, 1, 1), "repeats in no direction; `jaxal vibrations` is for molecules"),
        (lambda a: a.set_cell([SPACING, 0, 0]), (2, 1, 1), "span no volume; give a vacuum along open directions"),
        (lambda a: a.set_constraint(ase.constraints.FixAtoms([0])), (2, 1, 1), "has fixed atoms"),
        (lambda a: None, (2, 2, 1), "--supercell: 2 along b does not fit; give 1, it is open there"),
        (lambda a: None, (0, 1, 1), "--supercell: 0 along a does not fit; give at least 1"),
    ],
)
def test_what_has_no_phonons_is_refused(change, supercell, message):
    atoms = CHAIN.copy()
    change(atoms)
    with pytest.raises(InputError, match=message):
        phonons(model("chain"), atoms, supercell)


def test_the_command_says_what_is_wrong_in_a_line(tmp_path, capsys):
    from jaxal.cli.main import main

    models.save(tmp_path / "chain.npz", model("chain"))
    write(tmp_path / "chain.xyz", CHAIN, format="extxyz")
    where = [str(tmp_path / "chain.npz"), str(tmp_path / "chain.xyz"), "--dir", str(tmp_path / "out")]
    assert main(["phonons", *where, "--supercell", "4", "1", "1"]) == 0
    assert "1 atoms in the primitive cell" in capsys.readouterr().out
    assert main(["phonons", *where, "--supercell", "4", "1", "1"]) == 2
    assert "give a new one with --dir" in capsys.readouterr().err
