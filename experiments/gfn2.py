"""GFN2-xTB itself: minima, and energies with forces and Hessians, to which experiments compare."""

import numpy as np
from ase import Atoms
from ase.optimize import BFGS
from tblite.ase import TBLite

from jaxal.simulate.surface import Expansion
from jaxal.validate.graph import bonds

STEP = 5e-3  # Å, of the differences that make a Hessian
RELAXED, RELAXATIONS = 1e-3, 1000  # eV/Å and steps


def method() -> TBLite:
    """GFN2-xTB, its energies to 1e-8."""
    return TBLite(method="GFN2-xTB", verbosity=0, accuracy=0.1)


def relaxed(atoms: Atoms) -> Atoms | None:
    """The minimum of GFN2-xTB below a structure; None where it has other bonds or is not reached."""
    after = Atoms(atoms.symbols, atoms.positions)
    after.calc = method()
    try:
        done = BFGS(after, logfile=None, maxstep=0.1).run(fmax=RELAXED, steps=RELAXATIONS)
    except Exception:  # a calculation that does not converge
        return None
    after.calc = None
    return after if done and np.array_equal(bonds(after), bonds(atoms)) else None


def expansion(atoms: Atoms) -> Expansion:
    """Energy, force and Hessian of GFN2-xTB."""
    moved = Atoms(atoms.symbols, atoms.positions)
    moved.calc = method()
    energy, force = moved.get_potential_energy(), moved.get_forces()
    rows = []
    for row in range(3 * len(atoms)):
        ends = []
        for sign in (1, -1):
            moved.positions = atoms.positions
            moved.positions.flat[row] += sign * STEP
            ends.append(moved.get_forces().ravel())
        rows.append((ends[1] - ends[0]) / (2 * STEP))
    hessian = np.array(rows)
    return Expansion(np.array([energy]), force[None], 0.5 * (hessian + hessian.T)[None])
