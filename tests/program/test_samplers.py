"""Samplers that couple their walkers, in the compiled segment: gate, labels, training and rewinding as in dynamics."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from loop_example import limits_of
from samplers import CUTOFF, HARMONIC, made
from scipy.optimize import minimize
from structures import plain

from jaxal.core.types import InputError, Start
from jaxal.core.units import BOLTZMANN
from jaxal.explore import fire
from jaxal.explore.band import band
from jaxal.explore.replicas import replica_exchange
from jaxal.potential.pair import morse
from jaxal.program import state as states
from jaxal.program.step import CLOSE, HOT

RADIUS, BOND, DEPTH, STEEP = 0.9, 1.3, 0.5, 1.5  # Å, Å, eV, 1/Å
MORSE = morse((1,), sigma=BOND, epsilon=DEPTH, alpha=STEEP, cutoff=CUTOFF, width=1.0)
LADDER = (300.0, 600.0, 1200.0)


def triangle(places) -> np.ndarray:
    """Three atoms on a circle around the z axis, and one at each of these places: [w 4 3]."""
    angle = 2 * np.pi * np.arange(3) / 3
    ring = RADIUS * np.stack([np.cos(angle), np.sin(angle), 0 * angle], axis=-1)
    return np.stack([np.vstack([ring, place]) for place in places]).astype(np.float32)


def through(place) -> float:
    """Energy (eV) of the fourth atom, in numpy."""
    distance = np.linalg.norm(triangle([place])[0, :3].astype(float) - place, axis=-1)
    return float(np.sum(DEPTH * ((1 - np.exp(-STEEP * (distance - BOND))) ** 2 - 1)))


@pytest.mark.slow
def test_a_band_finds_the_barrier_that_a_scan_has_and_pays_for_what_is_uncertain():
    images = 7
    height = np.sqrt(BOND**2 - RADIUS**2)
    part = np.linspace(0, 1, images)
    bump = np.sin(np.pi * part)
    path = np.stack([0.2 * bump, -0.1 * bump, height * (2 * part - 1)], axis=-1)
    place = jnp.asarray(triangle(path))
    held = np.zeros((images, 4), bool)
    held[:, :3] = True
    whole = jnp.zeros(images, jnp.int32)
    cell = jnp.zeros((images, 3, 3), jnp.float32)
    structures = plain(place, jnp.zeros((images, 4), jnp.int32), cell, whole, whole, fixed=jnp.asarray(held))
    state, run = made(band(converged=1e-3), MORSE, structures, 10, 10, [0.85, 0.9])
    state = state._replace(gate=state.gate._replace(threshold=jnp.float32(0.01)))
    # an image too uncertain to be plausible is labeled: taken back it would come the same way again, for ever
    limits = limits_of(steps=60, rate=1e-2, final_rate=1e-3, holdout=0.2, implausible=1e-9)
    paid = []
    for _ in range(12):
        state, looks = run(state, limits)
        assert not int(state.problems) & states.UNDONE
        paid.append(int(looks.ok.sum()))
        if looks.over[-1].all() and not paid[-1]:
            break
    assert looks.over[-1].all() and not looks.flagged[-1].any() and np.all(looks.report["pull"][-1] < 1e-3)
    assert paid[0] > 0 and paid[-1] == 0
    last = np.asarray(looks.structure.position[-1])
    np.testing.assert_array_equal(last[[0, -1]], place[jnp.asarray([0, -1])])
    np.testing.assert_array_equal(last[:, :3], place[:, :3])
    # at each height the best place across: that is the path, by symmetry of the triangle
    scan = [
        minimize(lambda x, z=z: through(np.array([*x, z])), [0.05, -0.02], tol=1e-10).fun
        for z in np.linspace(-height, height, 41)
    ]
    barrier = max(scan) - scan[0]
    assert barrier == pytest.approx(1.014, abs=1e-3)
    true = np.array([through(frame[3].astype(float)) for frame in last])
    assert true.max() - true[0] == pytest.approx(barrier, abs=1e-3) and true.argmax() == images // 2
    gaps = np.linalg.norm(np.diff(last[:, 3], axis=0), axis=-1)
    np.testing.assert_allclose(gaps, gaps.mean(), rtol=1e-2)
    energy = np.asarray(looks.energy[-1])
    assert energy.max() - energy[0] == pytest.approx(barrier, rel=0.02)

    # An image that left the physical is taken back by itself; the others wait for it, and the band is the same again.
    broken = state.walkers[0]
    crash = broken.structure.position.at[2, 3].set(broken.structure.position[2, 0] + jnp.asarray([0.02, 0.0, 0.01]))
    broken = broken._replace(structure=broken.structure._replace(position=crash), glide=fire.at_rest(crash))
    after, looks = run(state._replace(walkers=(broken,)), limits)
    assert np.array_equal(np.argwhere(np.asarray(looks.unphysical)), [[0, 2]]) and int(looks.cause[0, 2]) == CLOSE
    assert not looks.over[0].any() and looks.over[-1].all() and not looks.ok.any()
    np.testing.assert_allclose(after.walkers[0].structure.position, last, atol=2e-3)


@pytest.mark.slow
def test_an_exchange_of_replicas_keeps_each_temperature_as_the_closed_form_says():
    """Two atoms on a spring: E has the gamma distribution of 3/2 degrees, E / kT, on every rung."""
    number = len(LADDER)
    position = jnp.zeros((number, 2, 3), jnp.float32).at[:, 1, 0].set(0.3)
    whole, cell = jnp.zeros(number, jnp.int32), jnp.zeros((number, 3, 3), jnp.float32)
    structures = plain(position, jnp.zeros((number, 2), jnp.int32), cell, whole, whole)
    sampler = replica_exchange(temperature=LADDER[0], highest=LADDER[-1], every=10, timestep=1.5, friction=0.15)
    state, run = made(sampler, HARMONIC, structures, 20, 400, [0.7, 0.9])
    bought = limits_of(steps=60, rate=1e-2, final_rate=1e-3, budget=40, closest=0.0, hottest=10.0)
    state = state._replace(gate=state.gate._replace(threshold=jnp.float32(0.02)))
    state, looks = run(state, bought)
    assert looks.ok[0].any() and not looks.flagged[-1].any() and not int(state.problems) & states.UNDONE
    factor = float(jnp.mean(state.train.average["params"]["factor"]))
    assert factor == pytest.approx(1.0, abs=0.1)

    free = bought._replace(budget=jnp.int32(0))
    state = state._replace(gate=state.gate._replace(threshold=jnp.float32(jnp.inf)))
    begun, kept = state.walkers[0], []
    for _ in range(4):
        state, looks = run(state, free)
        kept.append(jax.device_get((looks.energy, looks.temperature, looks.report["rung"])))
        assert not looks.unphysical.any() and looks.over is None
    energy, heat, rung = (np.concatenate(values) for values in zip(*kept, strict=True))
    rung = rung.astype(int)
    assert np.all(np.sort(rung, axis=1) == np.arange(number))
    kT = BOLTZMANN * np.array(LADDER)
    for row in range(number):
        own = energy[rung == row] / kT[row]
        blocks = own.reshape(20, -1).mean(1)
        error = blocks.std(ddof=1) / np.sqrt(len(blocks))
        assert error < 0.1 and abs(own.mean() - 1.5) < 4 * error, (row, own.mean(), error)
        assert heat[rung == row].mean() == pytest.approx(LADDER[row], rel=0.1)
    # the chance of an exchange, from independent replicas
    rng = np.random.default_rng(0)
    drawn = rng.gamma(1.5, kT, (200000, number))
    now, visits = state.walkers[0], [np.mean(rung == row, axis=0) for row in range(number)]
    np.testing.assert_allclose(visits, 1 / 3, atol=0.1)
    gain = np.diff(-1 / kT) * -np.diff(drawn)
    expected = np.mean(np.minimum(1, np.exp(gain)))
    tries, swaps = (float(jnp.sum(getattr(now, name) - getattr(begun, name))) for name in ("tried", "accepted"))
    assert tries == 4 * 400 * 2 and swaps / tries == pytest.approx(expected, abs=4 * 0.5 / np.sqrt(tries / 3))

    # Too hot for its own rung: it goes back by itself, with momenta of that rung, and no rung is lost.
    hot = now._replace(momentum=now.momentum.at[0].multiply(100.0))
    after, looks = run(state._replace(walkers=(hot,)), free)
    assert np.array_equal(np.argwhere(np.asarray(looks.unphysical)), [[0, 0]]) and int(looks.cause[0, 0]) == HOT
    assert np.all(np.sort(np.asarray(looks.report["rung"][1:]), axis=1) == np.arange(number))
    assert np.all(np.isfinite(after.walkers[0].structure.position))


def test_a_sampler_says_how_many_walkers_it_can_move():
    for sampler, number, says in ((band(), 2, "2 is too small; a band"), (replica_exchange(), 1, "1 is too small; an")):
        none, cell = jnp.zeros(number, jnp.int32), jnp.zeros((number, 3, 3))
        structure = plain(jnp.zeros((number, 1, 3)), jnp.zeros((number, 1), jnp.int32), cell, none, none)
        keys, start = jax.random.split(jax.random.key(0), number), Start(structure, jnp.zeros((number, 1, 3)), cell)
        with pytest.raises(InputError, match=f"explore.walkers: {says}"):
            sampler.init(keys, start, none)
    with pytest.raises(InputError, match=r"explore\.highest: 200 K is too low"):
        replica_exchange(highest=200.0)
