"""Dynamics comes without what takes long to import, and who asks for that gets it."""

import subprocess
import sys

PROGRAM = """
import sys
from jaxal.core.jaxmd import energy, simulate
later = ("jax_md.rigid_body", "jax_md.energy")
assert simulate.nve and not any(hasattr(sys.modules[name], "__file__") for name in later), "they are loaded"
import jax_md
from jax_md import rigid_body
assert jax_md.rigid_body is rigid_body and rigid_body.RigidBody.__module__ == "jax_md.rigid_body"
assert energy.morse is jax_md.energy.morse and energy.morse.__module__ == "jax_md.energy"
try:
    energy.no_such
except AttributeError:
    print("well")
"""


def test_what_dynamics_does_not_need_is_loaded_when_it_is_asked_for():
    result = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True)
    assert result.stdout == "well\n", result.stderr
