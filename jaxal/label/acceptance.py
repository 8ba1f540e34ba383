"""What every label must pass, whoever calculated it: converged, finite, of the right shape, plausible forces.

A method may answer nonsense without an error: GFN2-xTB gives H2 at 0.05 Å a force of 6900 eV/Å.
"""

import numpy as np

from jaxal.label.task import Result, Task

# Far above what a reactive trajectory meets (a hydrogen atom 0.25 Å inside its bond length feels 30 eV/Å),
# far below what atoms on top of each other give.
MAX_FORCE = 30.0  # eV/Å
# The forces of a translation-invariant energy sum to zero. Measured norms of the sum: tblite 1e-14;
# PySCF 4e-4 at grid level 3 and 4e-3 at level 1 (acetaldehyde, PBE0/def2-SVP, without grid response).
NET_FORCE = 0.1  # eV/Å


def accept(task: Task, result: Result, *, max_force: float = MAX_FORCE, net_force: float = NET_FORCE) -> Result:
    """The result, with `ok=False` and a reason where it must not be learned from.

    `max_force` caps the force on any atom and `net_force` the norm of the sum of all forces, both in eV/Å;
    infinity switches one off (an external field or fixed atoms do leave a net force).
    """
    reason = _objection(task, result, max_force, net_force)
    return result._replace(ok=False, reason=reason) if result.ok and reason else result


def _objection(task: Task, result: Result, max_force: float, net_force: float) -> str:
    n = len(task.numbers)
    if np.shape(result.energy) != () or np.shape(result.force) != (n, 3) or np.shape(result.stress) != (3, 3):
        return (
            f"wrong shapes: energy {np.shape(result.energy)}, force {np.shape(result.force)}, "
            f"stress {np.shape(result.stress)} for {n} atoms"
        )
    numbers = [("energy", result.energy), ("force", result.force)]
    if not np.all(np.isnan(result.stress)):  # a method may have none
        numbers.append(("stress", result.stress))
    for name, value in numbers:
        if not np.all(np.isfinite(value)):
            return f"the {name} is not finite"
    largest = np.linalg.norm(result.force, axis=1).max(initial=0.0)
    if largest > max_force:
        return f"a force of {largest:.4g} eV/Å is above max_force {max_force:g}"
    net = np.linalg.norm(np.sum(result.force, axis=0))
    if net > net_force:
        return f"a net force of {net:.3g} eV/Å is above net_force {net_force:g}"
    return ""
