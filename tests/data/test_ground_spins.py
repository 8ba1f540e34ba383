"""The table of ground states against ASE's, of another origin."""

from ase.data import chemical_symbols, ground_state_magnetic_moments

from jaxal.data.electrons import GROUND_SPINS, ground_spin


def test_ground_spins_are_those_of_ase():
    assert len(GROUND_SPINS) == 86 and ground_spin(86) == 0 and ground_spin(87) is ground_spin(0) is None
    different = {}
    for number, spin in enumerate(GROUND_SPINS, 1):
        assert 0 <= spin <= number and (number - spin) % 2 == 0  # as many electrons as protons
        if spin != ground_state_magnetic_moments[number]:
            different[chemical_symbols[number]] = spin
    # Ce I is 4f 5d 6s2 1G4 (NIST); ASE gives 1, an odd number for 58 electrons
    assert different == {"Ce": 0}
