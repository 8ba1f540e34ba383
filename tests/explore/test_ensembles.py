"""Ensembles of the explorers on closed forms: temperature, pressure and their fluctuations within standard errors.

A crystal of 32 argon atoms (Lennard-Jones with a short cutoff) at 30 K. It does not diffuse, so one neighbor
list with a wide skin holds for the whole run; that it did is checked. Averages are over walkers that are
independent, so the standard error is the spread of the walkers' own averages: no block length to choose.
Short forms run always: what they can tell is as wide as their standard errors. With fixed atoms there is less to
thermalize, and all of it: nothing conserves the momentum of the rest.
"""

import ase.build
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase.constraints import FixAtoms

from jaxal.committee.evaluation import evaluate
from jaxal.core.units import BOLTZMANN, GPA
from jaxal.data import neighbors
from jaxal.data.structure import from_atoms
from jaxal.explore import dynamics
from jaxal.explore.walker import temperature
from jaxal.potential import pair

TEMPERATURE, TIMESTEP, ATOMS, SIGMAS = 30.0, 5.0, 32, 4.0
kT = BOLTZMANN * TEMPERATURE


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


def crystal(lattice=5.34, fixed=()):
    atoms = ase.build.bulk("Ar", "fcc", a=lattice, cubic=True).repeat(2)
    atoms.set_constraint(FixAtoms(fixed))
    return jax.device_put(from_atoms(atoms, (18,), dtype=np.float64))


def sample(explorer, structure, walkers, equilibration, steps, every=4):
    """Temperature (K), potential energy (eV), trace of the stress (eV/Å^3) and volume, each [samples, walkers]."""
    potential = pair.lennard_jones((18,), cutoff=5.2, width=1.2)
    spec = neighbors.plan(structure, potential.cutoff, 2.0)
    listed = neighbors.build(spec, structure)

    def forces(structure):
        energy, force, stress, _ = evaluate(potential, {}, structure, listed)
        return energy, force, stress

    def step(walker):
        structure = explorer.propose(walker)
        _, force, stress = forces(structure)
        return explorer.advance(walker, structure, force, stress)

    def start(key):
        _, force, stress = forces(structure)
        return explorer.init(key, structure, force, stress, jnp.int32(0))

    def several(walker, _):
        walker = jax.lax.fori_loop(0, every, lambda _, w: step(w), walker)
        energy, _, stress = forces(walker.structure)
        volume = jnp.abs(jnp.linalg.det(walker.structure.cell))
        return walker, (temperature(walker), energy, jnp.trace(stress), volume)

    def trajectory(key):
        walker = jax.lax.fori_loop(0, equilibration, lambda _, w: step(w), start(key))
        walker, measured = jax.lax.scan(several, walker, length=steps // every)
        still = jnp.where(structure.fixed[:, None], walker.structure.position - structure.position, 0.0)
        return measured, neighbors.stale(spec, listed, walker.structure) | jnp.any(still != 0)

    measured, stale = jax.jit(jax.vmap(trajectory))(jax.random.split(jax.random.key(0), walkers))
    assert not bool(jnp.any(stale))
    return [np.asarray(x).T for x in measured]


def mean(samples):
    """Average and its standard error from independent walkers, [samples, walkers] -> two floats."""
    walkers = samples.mean(axis=0)
    return walkers.mean(), walkers.std(ddof=1) / np.sqrt(len(walkers))


def check_canonical(kelvin, free, sharp=0.01):
    """Mean and variance of the kinetic temperature: T, to the part `sharp`, and 2 T^2 / (degrees of freedom)."""
    average, error = mean(kelvin)
    print(f"T = {average:.3f} +- {error:.3f} K")
    assert error < sharp * TEMPERATURE
    assert abs(average - TEMPERATURE) < SIGMAS * error
    variance, error = mean((kelvin - TEMPERATURE) ** 2)
    expected = 2 * TEMPERATURE**2 / free
    print(f"var T = {variance:.3f} +- {error:.3f} K^2, expected {expected:.3f}")
    assert error < 10 * sharp * expected
    assert abs(variance - expected) < SIGMAS * error


LAYER = tuple(range(0, ATOMS, 4))  # every fourth atom, of one sublattice
BATHS = {
    "nvt_langevin": (dynamics.nvt_langevin(temperature=TEMPERATURE, timestep=TIMESTEP, friction=0.02), 3 * ATOMS),
    "nvt_nose_hoover": (dynamics.nvt_nose_hoover(temperature=TEMPERATURE, timestep=TIMESTEP, tau=100.0), 3 * ATOMS - 3),
}


@pytest.mark.slow
@pytest.mark.parametrize("fixed", [(), LAYER], ids=["free", "fixed"])
@pytest.mark.parametrize("name", BATHS)
def test_thermostats_in_short(name, fixed):
    explorer, free = BATHS[name]
    kelvin = sample(explorer, crystal(fixed=fixed), 16, 600, 400)[0]
    check_canonical(kelvin, 3 * (ATOMS - len(fixed)) if fixed else free, sharp=0.03)


def test_energy_is_kept_around_fixed_atoms():
    explorer = dynamics.nve(temperature=TEMPERATURE, timestep=TIMESTEP)
    kelvin, energy, _, _ = sample(explorer, crystal(fixed=LAYER), 8, 100, 300)
    kinetic = kelvin * BOLTZMANN * 3 * (ATOMS - len(LAYER)) / 2
    assert np.ptp(kinetic, axis=0).min() > 0.01  # eV: much of it goes to and fro
    assert np.ptp(energy + kinetic, axis=0).max() < 2e-4
    average, error = mean(kelvin)
    assert abs(average - TEMPERATURE / 2) < 0.05 * TEMPERATURE + SIGMAS * error


@pytest.mark.slow
def test_npt_in_short():
    kelvin, _, trace, volume = sample(barostat(0.1), crystal(), 16, 400, 400)
    average, error = mean(kelvin)
    assert error < 0.03 * TEMPERATURE and abs(average - TEMPERATURE) < SIGMAS * error
    average, error = mean(((ATOMS - 1) * kT / volume - trace / 3 - kT / (ATOMS * volume)) / GPA)
    print(f"P = {average:.4f} +- {error:.4f} GPa, set 0.1")
    assert error < 5e-3 and abs(average - 0.1) < SIGMAS * error


@pytest.mark.slow
def test_langevin_and_nose_hoover_are_canonical_and_agree():
    structure = crystal()
    langevin = dynamics.nvt_langevin(temperature=TEMPERATURE, timestep=TIMESTEP, friction=0.01)
    nose_hoover = dynamics.nvt_nose_hoover(temperature=TEMPERATURE, timestep=TIMESTEP, tau=200.0)
    energies = []
    for explorer, free in ((langevin, 3 * ATOMS), (nose_hoover, 3 * ATOMS - 3)):
        kelvin, energy, _, _ = sample(explorer, structure, 32, 600, 2400)
        check_canonical(kelvin, free)
        energies.append(mean(energy))
    (first, first_error), (second, second_error) = energies
    print(f"U = {first:.5f} +- {first_error:.5f} and {second:.5f} +- {second_error:.5f} eV")
    assert abs(first - second) < SIGMAS * np.hypot(first_error, second_error)


@pytest.mark.slow
def test_nve_shares_energy_between_kinetic_and_potential():
    """From the perfect crystal half of the kinetic energy is lost, and its fluctuation is not canonical."""
    explorer = dynamics.nve(temperature=TEMPERATURE, timestep=TIMESTEP)
    kelvin, energy, _, _ = sample(explorer, crystal(), 32, 600, 1200)
    total = energy + kelvin * BOLTZMANN * (3 * ATOMS - 3) / 2
    drift = np.abs(total[-1] - total[0]) / ATOMS
    print(f"drift {drift.max():.1e} eV/atom in 6 ps, spread {total.std(axis=0).max():.1e} eV")
    assert drift.max() < 2e-6
    average, error = mean(kelvin)
    assert abs(average - TEMPERATURE / 2) < 0.05 * TEMPERATURE + SIGMAS * error


def barostat(pressure):
    return dynamics.npt_nose_hoover(
        temperature=TEMPERATURE,
        timestep=TIMESTEP,
        tau=200.0,
        pressure=pressure,
        barostat_tau=1000.0,
    )


def check_npt(pressure):
    """Temperature, pressure and its correlation with the volume; returns mean and variance of the volume."""
    kelvin, _, trace, volume = sample(barostat(pressure), crystal(), 32, 2000, 4000)
    check_canonical(kelvin, 3 * ATOMS - 3)
    # The center of mass rests, so N - 1 atoms press: the phase space of the cell and the other atoms is weighted
    # with V^(N - 1 - 1/N) exp(-(U + P V)/kT) at fixed fractional coordinates (jax-md's barostat takes 1 + 1/N for
    # 1 + 1/(N - 1)). Integration by parts over V gives two identities for P_in = (N - 1) kT/V - tr(stress)/3:
    # <P_in> = P + <kT/(N V)>, and <(P_in - P) V> = -kT + kT/N, which sees the fluctuation of the volume too.
    inside = (ATOMS - 1) * kT / volume - trace / 3
    average, error = mean((inside - kT / (ATOMS * volume)) / GPA)
    print(f"P = {average:.6f} +- {error:.6f} GPa, set {pressure}")
    assert error < 1e-4
    assert abs(average - pressure) < SIGMAS * error
    work, error = mean((inside - pressure * GPA) * volume / kT)
    print(f"<(P_in - P) V> = {work:.3f} +- {error:.3f} kT, expected {1 / ATOMS - 1:.3f}")
    assert error < 0.25
    assert abs(work - (1 / ATOMS - 1)) < SIGMAS * error
    print(f"V = {volume.mean() / ATOMS:.3f} +- {mean(volume)[1] / ATOMS:.3f} Å^3 per atom")
    return volume.mean(), volume.var()


@pytest.mark.slow
def test_npt():
    (wide, soft), (tight, stiff) = check_npt(0.0), check_npt(0.2)
    # Fluctuation and response: -dV/dP = var(V) / kT, integrated over the pressure by the trapezoidal rule.
    response, fluctuation = (wide - tight) / (0.2 * GPA), (soft + stiff) / (2 * kT)
    print(f"-dV/dP = {response:.4g} from two pressures, {fluctuation:.4g} Å^6/eV from the fluctuation")
    assert abs(fluctuation / response - 1) < 0.1
