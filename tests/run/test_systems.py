"""A run of several systems: one program, walkers by system, resumed bit for bit, with a system added later."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule
from ase.io import read, write
from commands import SMALL
from run_example import EQUIVARIANT, jaxal, killed_after, metrics, model_arrays

from jaxal.committee import evaluation as committees
from jaxal.config.loading import load
from jaxal.config.systems import populations
from jaxal.core import registry
from jaxal.core.discovery import import_file
from jaxal.data import neighbors
from jaxal.deploy import model as models
from jaxal.deploy.calculator import Calculator
from jaxal.label.task import Enough
from jaxal.run import checkpoint, driver

MIXED = """
systems:
  water: {file: water.xyz, walkers: 2}
  dimer: {file: dimer.xyz, walkers: 2, explore: {temperature: 200}}
potential: {name: bonds}
committee: {members: 2}
explore: {temperature: 600}
gate: {name: threshold, limit: 0.0, every: 4, implausible: 50}
label: {initial: 8}
train: {steps: 4, initial_steps: 40, final_steps: 20, batch: 2, learning_rate: 0.01, holdout: 0.2}
stop: {labels: 40}
output: {checkpoint: 0, trajectory: 5}
"""


def dimer():
    other = molecule("H2O")
    other.positions += (0.0, 0.0, 2.9)
    return molecule("H2O") + other


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mixed")
    write(folder / "water.xyz", molecule("H2O"))
    write(folder / "dimer.xyz", dimer())
    (folder / "config.yaml").write_text(MIXED)
    jaxal("run", folder / "config.yaml", "--dir", folder / "run")
    return folder


@pytest.mark.slow
def test_everything_is_told_by_system(finished):
    lines = metrics(finished / "run")
    labels = [line for line in lines if line["kind"] == "label"]
    assert {line["system"] for line in labels} == {"water", "dimer"} and len(labels) == 40 - 8
    last = [line for line in lines if line["kind"] == "segment"][-1]["systems"]
    assert set(last) == {"water", "dimer"}
    for line in labels:  # walkers are numbered group by group
        assert line["system"] == ("water" if line["walker"] < 2 else "dimer")
    frames = read(finished / "run" / "trajectory.xyz", ":")
    assert {(frame.info["system"], len(frame)) for frame in frames} == {("water", 3), ("dimer", 6)}
    assert {len(frame) for frame in read(finished / "run" / "training.xyz", ":")} == {3, 6}
    report = json.loads((finished / "run" / "report.json").read_text())
    assert set(report["systems"]) == {"water", "dimer"}
    assert sum(own["labels"] for own in report["systems"].values()) == len(labels)
    shown = jaxal("status", finished / "run").stdout
    assert "  water " in shown and "  dimer " in shown and " labels, " in shown
    assert "<h2>Systems</h2>" in (finished / "run" / "report.html").read_text()


def test_one_model_serves_both(finished):
    """Padding changes nothing: what the trajectory says is what the model of a single structure says."""
    import_file(SMALL)
    calculator = Calculator(finished / "run")
    for atoms in (molecule("H2O"), dimer()):
        atoms.calc = calculator
        assert np.isfinite(atoms.get_potential_energy()) and atoms.get_forces().shape == (len(atoms), 3)


@pytest.mark.slow
def test_a_killed_run_ends_the_same(finished):
    killed_after(finished / "config.yaml", finished / "killed", 3)
    jaxal("resume", finished / "killed")
    whole, resumed = (model_arrays(finished / name) for name in ("run", "killed"))
    assert whole.keys() == resumed.keys()
    for name, values in whole.items():
        if values.dtype.kind in "fiu":
            np.testing.assert_array_equal(values, resumed[name])
    assert metrics(finished / "run") == metrics(finished / "killed")
    texts = [(finished / name / "trajectory.xyz").read_text() for name in ("run", "killed")]
    assert texts[0] == texts[1]


def added(folder, run, name, atoms, labels):
    """The metrics of a run that has gone on with one more system, up to so many labels."""
    write(folder / f"{name}.xyz", atoms)
    jaxal("resume", run, f"systems.{name}.file={folder / name}.xyz", f"stop.labels={labels}")
    lines = metrics(run)
    assert [line["why"] for line in lines if line["kind"] == "phase" and "added" in line["why"]] == [f"added {name}"]
    later = [line for line in lines if line["kind"] == "label" and line["label"] > 40]
    assert name in {line["system"] for line in later} and later[-1]["label"] == labels
    assert len([line for line in lines if line["kind"] == "label" and line["label"] <= 40]) == 32
    jaxal("resume", run)  # it is over, and stays as it is
    assert metrics(run) == lines
    return [frame.get_chemical_formula() for frame in read(run / "training.xyz", ":")]


def trimer():
    third = molecule("H2O")
    third.positions += (2.9, 0.0, 0.0)
    return dimer() + third


@pytest.mark.slow
def test_a_system_is_added_with_more_atoms(finished, tmp_path):
    shutil.copytree(finished / "run", tmp_path / "run")
    formulas = added(tmp_path, tmp_path / "run", "trimer", trimer(), 60)
    assert set(formulas) == {"H2O", "H4O2", "H6O3"} and len(formulas) == 60
    import_file(SMALL)
    assert [system.walkers for system in populations(load(tmp_path / "run" / "config.yaml"))] == [2, 2, 4]


@pytest.mark.slow
def test_what_was_learned_stays_where_a_system_is_added(finished, tmp_path, monkeypatch):
    """Rows of the training set, the random sample, counts of the gate; walkers begin at their trusted frames."""
    shutil.copytree(finished / "run", tmp_path / "run")
    stored = checkpoint.newest(tmp_path / "run" / "checkpoints")
    leaves = {leaf[0]: stored.arrays.get(str(row)) for row, leaf in enumerate(stored.record["leaves"])}
    seen = []

    def explored(run, progress, state, *_):
        seen.append((run, progress, state))
        raise Enough

    monkeypatch.setattr(driver, "explore", explored)
    import_file(SMALL)
    added_system = [f"systems.trimer.file={tmp_path / 'trimer.xyz'}", "stop.labels=64"]
    write(tmp_path / "trimer.xyz", trimer())
    assert not driver.resume(tmp_path / "run", added_system)
    ((run, progress, state),) = seen
    rows = leaves[".buffer.count"]
    assert int(state.buffer.count) == rows + 6 and state.buffer.structure.species.shape[1] == 9
    np.testing.assert_array_equal(
        state.buffer.structure.position[:rows, :6], leaves[".buffer.structure.position"][:rows]
    )
    np.testing.assert_array_equal(state.buffer.weight[:, :rows], leaves[".buffer.weight"][:, :rows])
    np.testing.assert_array_equal(state.sample.there, leaves[".sample.there"])
    np.testing.assert_array_equal(state.sample.structure.position[:, :6], leaves[".sample.structure.position"])
    assert int(state.sample.seen) == leaves[".sample.seen"] and np.any(leaves[".sample.there"])
    assert [int(state.gate.covered), int(state.gate.checked)] == [leaves[".gate.covered"], leaves[".gate.checked"]]
    np.testing.assert_array_equal(state.fresh.score, leaves[".fresh.score"])
    np.testing.assert_array_equal(state.trusted.structure.position[:4, :6], leaves[".trusted.structure.position"])
    np.testing.assert_allclose(state.farthest[:4], leaves[".farthest"])
    assert progress.reference == stored.record["host"]["reference"] and progress.asked == int(state.labels) == 46
    assert [run.systems[at].name for at in run.walkers] == ["water"] * 2 + ["dimer"] * 2 + ["trimer"] * 4


@pytest.mark.slow
def test_a_system_is_added_with_another_element(tmp_path):
    write(tmp_path / "water.xyz", molecule("H2O"))
    write(tmp_path / "dimer.xyz", dimer())
    (tmp_path / "config.yaml").write_text(MIXED.replace("{name: bonds}", EQUIVARIANT))
    jaxal("run", tmp_path / "config.yaml", "--dir", tmp_path / "run")
    learned = models.load(tmp_path / "run")
    formulas = added(tmp_path, tmp_path / "run", "methanol", molecule("CH3OH"), 50)
    assert set(formulas) == {"H2O", "H4O2", "CH4O"} and len(formulas) == 50
    grown = models.load(tmp_path / "run")
    assert learned.table == (1, 8) and grown.table == (1, 6, 8)
    np.testing.assert_array_equal(grown.reference[[0, 2]], learned.reference)
    # its isolated atoms are known, too, and those of the others stay
    lines = [line for line in metrics(tmp_path / "run") if line["kind"] == "atom"]
    assert [line["element"] for line in lines] == ["H", "O", "C"] and learned.isolated and grown.isolated
    energies = {line["element"]: line["energy"] for line in lines}
    calculator = Calculator(tmp_path / "run")
    for names in ("HH", "O", "C", "COHH"):
        far = Atoms(names, positions=40.0 * np.arange(3 * len(names)).reshape(-1, 3), calculator=calculator)
        atoms = sum(energies[name] for name in far.get_chemical_symbols())
        assert far.get_potential_energy() == pytest.approx(atoms, abs=1e-3)


@pytest.mark.parametrize(
    "overrides, expected",
    [
        (
            ["systems.more.file=inputs/systems.water.file/water.xyz"],
            "stop.labels: 40 is too small for systems.more: 40 labels are there",
        ),
        (
            ["systems.dimer.walkers=3", "stop.labels=99"],
            "the run was begun otherwise: systems.dimer.walkers was 2, is 3",
        ),
        (["systems.dimer.explore.temperature=400", "stop.labels=99"], "systems.dimer.explore.temperature was 200"),
    ],
)
def test_what_cannot_be_added_or_changed(finished, tmp_path, overrides, expected):
    shutil.copytree(finished / "run", tmp_path / "run")
    result = jaxal("resume", tmp_path / "run", *overrides, check=False)
    assert result.returncode != 0 and expected in result.stderr
    # a mistake leaves the folder as it was
    assert (tmp_path / "run" / "config.yaml").read_text() == (finished / "run" / "config.yaml").read_text()


def test_walkers_of_two_sizes_see_what_they_would_alone():
    """Energies and forces of padded structures are those of the structures, whatever else is in the batch."""
    import_file(SMALL)
    from jaxal.data.padding import structures_to
    from jaxal.data.structure import from_atoms

    table = (1, 8)
    committee = committees.Committee(registry.get("potential", "bonds")(table), 2)
    small = jax.device_put(from_atoms([molecule("H2O")], table))
    large = jax.device_put(from_atoms([dimer()], table))
    both = jax.tree.map(lambda x, y: jnp.concatenate([x, y]), structures_to(small, 6), large)
    spec = neighbors.plan(both, committee.potential.cutoff)
    params = committees.init(
        committee, jax.random.key(0), *jax.tree.map(lambda x: x[0], (both, neighbors.find(spec, both)))
    )
    together = committees.predict(committee, params, both, neighbors.find(spec, both))
    alone = committees.predict(committee, params, small, neighbors.find(spec, small))
    np.testing.assert_allclose(together.energy[0], alone.energy[0], rtol=1e-6)
    np.testing.assert_allclose(together.force[0, :, :3], alone.force[0], atol=1e-6)
    assert not np.any(np.asarray(together.force[0, :, 3:]))
    np.testing.assert_array_equal(structures_to(structures_to(small, 6), 3).species, small.species)
