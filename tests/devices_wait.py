"""Run by test_devices on two devices: a host takes its time over a label while the other device waits."""

import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
from structures import plain

from jaxal.core import devices
from jaxal.core.types import Label
from jaxal.program.callback import host_label

patience, seconds = (float(word) for word in sys.argv[1:])
if patience:
    devices.PATIENCE = int(patience)
devices.prepare()
mesh = devices.mesh(2, 1)
calls = []


def slow(structures, wanted):
    calls.append(1)
    time.sleep(seconds)
    return Label(np.arange(2.0), structures.position, structures.cell, np.asarray(wanted))


def look(total, wants):
    structures = plain(jnp.ones((2, 3, 3)), jnp.zeros((2, 3), int), jnp.zeros((2, 3, 3)), *jnp.zeros((2, 2), int))
    none = Label(jnp.zeros(2), jnp.zeros((2, 3, 3)), jnp.zeros((2, 3, 3)), jnp.zeros(2, bool))
    wanted = jnp.asarray([True, False])
    label = jax.lax.cond(wants, lambda: host_label(slow, structures, wanted, mesh), lambda: none)
    return total + jnp.sum(label.energy) + jnp.sum(label.force) + jnp.sum(label.ok), None


total, _ = jax.jit(lambda wants: jax.lax.scan(look, 0.0, wants))(jnp.asarray([False, True, False]))
print(float(total), len(calls))
