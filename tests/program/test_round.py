"""Every registered part in the silicon loop: one compiled program of dynamics, selection, labels and training.

A round takes one part of each kind, so there are as many rounds as the largest kind has parts, and each part is in one
at least; under a schedule the selection is its first arm, the one that is played first. All rounds are traced, which
shows that the parts fit each other and the loop; compiling one takes far longer, so they are played among the slow
tests.
Uncertainties have their rounds in test_contracts_uncertainty.py; labelers and executors are outside of the program.
"""

import functools
import tempfile
from pathlib import Path

import jax
import numpy as np
import pytest
import yaml
from ase.build import bulk
from ase.io import write
from closed_features import SHELLS

from jaxal.config.loading import load
from jaxal.config.systems import populations
from jaxal.core import registry
from jaxal.core.discovery import import_parts
from jaxal.data import neighbors
from jaxal.data.structure import from_atoms, species_table
from jaxal.program import loop
from jaxal.program import state as states
from jaxal.run import assembly, initial_labels, labeling, training_data
from jaxal.train import fit as training

import_parts()

KINDS = ("select", "score", "gate", "kernel", "schedule", "bias", "variable", "explorer")
PARTS = {kind: registry.names(kind) for kind in KINDS}
ROUNDS = max(map(len, PARTS.values()))
WALKERS, BATCH, STEPS = 6, 3, 3
DTYPE = np.dtype("float32")
# What a part cannot do without, and gates that are to ask for labels in the first steps.
OPTIONS = {
    "bandit": {"rule": "ucb1"},
    "distinct": {"closest": 0.0},  # walkers begin where a label is
    "mixture": {"weights": [1.0, 0.0]},
    "restraint": {"low": 2.0, "high": 3.0},
    "metadynamics": {"width": 0.1, "pace": 1, "hills": 20},
    "opes": {"width": 0.1, "pace": 1, "kernels": 10},
    "umbrella": {"low": 2.0, "high": 3.0, "windows": 3},
    "wall": {"low": 2.0, "high": 3.0},
    "confinement": {"radius": 3.0},
    "distance": {"atoms": [0, 1]},
    "difference": {"pairs": [[0, 1], [1, 2]]},
    "linear_combination": {"pairs": [[0, 1], [1, 2]], "coefficients": [1.0, 2.0]},
    "angle": {"atoms": [0, 1, 2]},
    "torsion": {"atoms": [0, 1, 2, 3]},
    "coordination": {"of": 0, "by": "Si"},
    "threshold": {"limit": 0.0},
    "threshold_window": {"low": 0.0},
} | {gate: {"target_error": 1e-6} for gate in ("adaptive", "conformal", "isotonic", "likelihood")}
# Their value may be negative or nothing where a frame is sure or far from what is looked for: gates may leave it alone.
MAY_REST = {"confidence_bound", "expected_improvement", "probability_of_improvement", "environment_novelty"}


# A bias for open structures, and an explorer for periodic ones.
OPEN, PERIODIC = {"confinement"}, {"npt_nose_hoover"}
OF_LENGTHS = {"artificial_force"}


def names_of(number: int) -> dict[str, str]:
    """The part of each kind in a round."""
    names = {kind: names[number % len(names)] for kind, names in PARTS.items()}
    if names["bias"] in OPEN and names["explorer"] in PERIODIC:
        names["explorer"] = "nvt_langevin"
    if names["bias"] in OF_LENGTHS:
        names["variable"] = "distance"
    return names


def rounds():
    for number in range(ROUNDS):
        names = names_of(number)
        yield pytest.param(names, id="-".join(names.values()))


def section(name: str) -> dict:
    return {"name": name} | OPTIONS.get(name, {})


def config_of(folder, names):
    """The configuration of a round, read from a file as a user's is."""
    crystal = bulk("Si", "diamond", 5.43, cubic=True)
    crystal.pbc = names["bias"] not in OPEN
    write(folder / "silicon.xyz", crystal, format="extxyz")
    sections = {
        "system": {"file": "silicon.xyz"},
        "potential": {"cutoff": 3.6, "channels": 2, "l_max": 1, "layers": 1, "radial": 4, "radial_hidden": 0},
        "committee": {"members": 2},
        "explore": section(names["explorer"]) | {"temperature": 600, "walkers": WALKERS},
        "gate": section(names["gate"]) | {"every": STEPS, "implausible": 1e6},
        "label": {"name": "stillinger_weber", "initial": 6, "batch": BATCH},
        "train": {"steps": 2, "batch": 2},
    } | {kind: section(names[kind]) for kind in ("select", "score", "kernel", "schedule", "bias")}
    sections["bias"]["variables"] = section(names["variable"])
    if names["schedule"] != "single":
        own = sections.pop("select")["name"]
        sections["schedule"]["of"] = [own, "random" if own == "farthest" else "farthest"]
    if names["explorer"] in ("nve", "descent"):
        sections["explore"].pop("temperature")
    (folder / "config.yaml").write_text(yaml.safe_dump(sections))
    return load(folder / "config.yaml"), crystal


def test_each_part_has_its_round():
    for kind, names in PARTS.items():
        assert {names_of(number)[kind] for number in range(ROUNDS)} == set(names)


@functools.cache
def lesson(periodic: bool):
    """Labeled structures of silicon, the neighbors they have room for, weights made from them and a training set."""
    alike = next(names for names in map(names_of, range(ROUNDS)) if (names["bias"] not in OPEN) == periodic)
    with tempfile.TemporaryDirectory() as folder:
        config, crystal = config_of(Path(folder), alike)
        first = initial_labels.first_labels(config, populations(config), Path(folder) / "labels.db")
    structures, labels = training_data.cast(first.structures, first.labels, np.zeros(1), DTYPE)
    committee = assembly.committee_of(config, species_table([crystal]))._replace(potential=SHELLS)
    near = neighbors.plan(structures, committee.potential.cutoff, assembly.SKIN)
    train_near = near._replace(skin=0.0, close=0)
    params = training_data.new_params(committee, jax.random.key(0), train_near, structures, labels)
    held = training_data.spread_hold(6, 0.2)
    buffer = training_data.training_set(structures, labels, held, 2, 16, jax.random.key(0), 1.0)
    return structures, near, train_near, committee, params, buffer


def segment_of(folder, names):
    """The segment of a round, what makes its first state, of what, and its limits."""
    config, crystal = config_of(folder, names)
    table, key = species_table([crystal]), jax.random.key(0)
    structures, near, train_near, committee, params, buffer = lesson(names["bias"] not in OPEN)
    example = from_atoms([crystal], table, dtype=DTYPE)
    label = labeling.oracle_label(config, table, DTYPE, np.zeros(1), labeling.oracle_spec(config, table, example))
    parts = assembly.parts_of(config, table, label, populations(config), [[0]])._replace(committee=committee)
    group = states.Group(near, len(crystal), (0,) * WALKERS)
    static = assembly.static_of(config, table, [group], train_near, looks=1)
    train = training.init(static.recipe, params)
    walkers = jax.tree.map(lambda x: np.stack([np.asarray(x)[0]] * WALKERS), structures)
    begin = functools.partial(states.start, parts, static)
    return loop.make_segment(parts, static), begin, (train, buffer, walkers, key), assembly.limits_of(config, 1e-3, 0.0)


@pytest.mark.parametrize("names", rounds())
def test_the_parts_of_a_round_fit(tmp_path, names):
    segment, begin, arguments, limits = segment_of(tmp_path, names)
    begun = jax.eval_shape(begin, *arguments)
    after, look = jax.eval_shape(segment, begun, limits)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), after) == jax.tree.map(lambda x: (x.shape, x.dtype), begun)
    assert {f"bias_{names['bias']}", f"variable_{names['variable']}"} == set(look.report)
    assert look.score.shape == look.flagged.shape == (1, WALKERS) and look.walker.shape == (1, BATCH)


@pytest.mark.slow
@pytest.mark.parametrize("names", rounds())
def test_one_round_of_silicon(tmp_path, names):
    segment, begin, arguments, limits = segment_of(tmp_path, names)
    begun = jax.jit(begin)(*arguments)
    after, look = jax.jit(segment)(begun, limits)

    assert not int(after.problems) & (states.UNDONE | states.LABEL_FAILED) and not look.unphysical.any()
    assert jax.tree.map(lambda x: (x.shape, x.dtype), after) == jax.tree.map(lambda x: (x.shape, x.dtype), begun)
    assert np.all(np.isfinite(after.walkers[0].structure.position)) and np.all(np.isfinite(look.score))
    if names["explorer"] != "descent":  # a crystal at rest has nowhere to go down to
        assert np.all(after.walkers[0].structure.position != begun.walkers[0].structure.position)
    picks, candidates = look.walker[0][look.walker[0] >= 0], np.flatnonzero(look.flagged[0])
    assert len(candidates) == WALKERS or names["score"] in MAY_REST
    assert len(set(picks.tolist())) == len(picks) and set(picks.tolist()) <= set(candidates.tolist())
    # a selection may leave out what is too like another, but not everything
    assert min(1, len(candidates)) <= len(picks) <= min(BATCH, len(candidates))
    assert int(after.buffer.count) == 6 + len(picks) and look.ok[0][look.walker[0] >= 0].all()
    weights = [jax.tree.leaves(jax.tree.map(lambda x: x, s.train.params)) for s in (begun, after)]
    assert (len(picks) > 0) == any(not np.array_equal(a, b) for a, b in zip(*weights, strict=True))
