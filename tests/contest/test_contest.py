"""A tiny contest from end to end: random and farthest are in, a killed one ends the same, mistakes cost nothing."""

import csv
import json
import re

import jax
import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule
from ase.io import write
from commands import alone
from contest_example import CONTEST, WATER, folder_of, frames

from jaxal.cli.main import main
from jaxal.contest import command, data, records, schema
from jaxal.contest.arena import arena
from jaxal.contest.data import STORE, check, opened
from jaxal.core import registry
from jaxal.core.errors import InputWarning
from jaxal.core.types import InputError
from jaxal.data.frames import of_atoms
from jaxal.label.store.database import open_store
from jaxal.run import checkpoint

STRATEGIES = "strategies: {greedy: {select: {name: top_k}}, energetic: {score: {name: energy_spread}}}\n"


def held(folder, dir, *overrides, only=()):
    """Holds the contest of a folder; its results by task and strategy, without times."""
    command.run(schema.load(folder / "contest.yaml", overrides), dir, only)
    return numbers(dir)


def numbers(dir):
    return {
        place: [{name: value for name, value in record.items() if not name.endswith("_s")} for record in results]
        for place, results in records.read(dir).items()
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return folder_of(tmp_path_factory.mktemp("contest"), CONTEST + WATER + STRATEGIES)


@pytest.fixture(scope="module")
def whole(folder):
    """The contest of two strategies, uninterrupted."""
    return held(folder, folder / "whole")


def test_every_strategy_and_both_baselines_come_through(folder, whole):
    assert [strategy for _, strategy in whole] == ["random", "farthest", "greedy", "energetic"]
    for results in whole.values():
        assert [(r["round"], r["seed"], r["labels"]) for r in results] == [
            (number, seed, labels) for number, labels in enumerate((5, 8, 11)) for seed in range(2)
        ]
        assert all(np.isfinite(r[name]) for r in results for name in ("force_rmse", "force_max", "energy_rmse", "nll"))
        assert all(0 < r["miscalibration"] < 0.5 and 0 < r["crps"] < r["force_mae"] for r in results)


def test_strategies_begin_alike_and_choose_differently(whole):
    def part(strategy, rounds):
        return [
            {k: v for k, v in record.items() if k != "strategy"}
            for record in whole["water", strategy]
            if record["round"] in rounds
        ]

    for strategy in ("farthest", "energetic", "greedy"):
        assert part(strategy, {0}) == part("random", {0})
        assert part(strategy, {1, 2}) != part("random", {1, 2})
    first, second = (record for record in part("random", {0}))
    assert first["force_rmse"] != second["force_rmse"]  # seeds differ in labels and weights


def test_what_a_contest_leaves_behind(folder, whole):
    output = folder / "whole"
    pictures = {f"{kind}_water.png" for kind in ("curves", "saved", "worst", "calibration")} | {"ranking.png"}
    assert pictures <= {path.name for path in output.iterdir()}
    assert all((output / name).read_bytes().startswith(b"\x89PNG") for name in pictures)
    assert not [path for path in (output / "states").rglob("*") if path.is_file()]  # of strategies that have ended
    table = list(csv.DictReader((output / "results.csv").open()))
    assert len(table) == 4 * 3 * 2
    assert float(table[0]["force_rmse"]) == whole["water", "random"][0]["force_rmse"]
    strategies = json.loads((output / "summary.json").read_text())["tasks"]["water"]["strategies"]
    error = np.log([[r["force_rmse"] for r in whole["water", "greedy"] if r["seed"] == s] for s in range(2)])
    assert strategies["greedy"]["curve"][2][0] == pytest.approx(np.exp(error[:, 2].mean()), rel=1e-4)
    assert set(strategies["greedy"]["saved"]) != {None} and "saved" not in strategies["random"]
    leaders = list(csv.DictReader((output / "leaderboard.csv").open()))
    assert {row["strategy"] for row in leaders} == set(strategies)
    assert all(re.fullmatch(r"[\d.]+ \[[\d.]+, [\d.]+\]", row["area"]) for row in leaders)
    page = (output / "contest.html").read_text()
    for text in ("greedy", "labels saved", "Friedman", "4 of 4", "2 seeds are few"):
        assert text in page


@pytest.mark.slow
def test_seeds_as_one_batch_come_to_the_same(folder, whole, tmp_path, monkeypatch):
    """What accelerators do, here: seeds and members vmapped. Only rounding differs."""
    monkeypatch.setattr(jax, "default_backend", lambda: "batched")
    results = held(folder, tmp_path / "batched", only=("random",))
    for record, other in zip(results["water", "random"], whole["water", "random"], strict=True):
        assert record["force_rmse"] == pytest.approx(other["force_rmse"], rel=1e-3)
        assert record["energy_rmse"] == pytest.approx(other["energy_rmse"], rel=1e-2)


class Killed(BaseException):
    pass


@pytest.mark.slow
@pytest.mark.parametrize("where", ["after the checkpoint", "before the checkpoint"])
def test_a_killed_contest_ends_with_the_same_numbers(folder, whole, tmp_path, monkeypatch, where):
    dir, calls = tmp_path / "killed", []
    save = checkpoint.save

    def dies(place, step, *rest):
        calls.append(step)
        if len(calls) == 5 and where == "before the checkpoint":
            raise Killed
        save(place, step, *rest)
        if len(calls) == 5:  # the second strategy, between a round's checkpoint and its results
            raise Killed

    only = ("random", "greedy", "farthest")
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save", dies)
        with pytest.raises(Killed):
            held(folder, dir, only=only)
    assert 0 < sum(map(len, numbers(dir).values())) < 3 * 3 * 2
    results = held(folder, dir, only=only)
    assert results == {place: whole[place] for place in results} and len(results) == 3


def test_a_changed_contest_is_refused_and_a_larger_one_goes_on(folder, whole):
    dir = folder / "whole"
    before = (dir / "results.jsonl").read_bytes()
    for override, field in (
        ("train.steps=11", "tasks.water.train.steps: is 11 and was 10"),
        ("seeds=3", "seeds: is 3 and was 2"),
        ("strategies.greedy.score.name=energy_spread", "strategies.greedy.score.name"),
    ):
        with pytest.raises(InputError, match=re.escape(field)):
            held(folder, dir, override)
    assert (dir / "results.jsonl").read_bytes() == before
    results = held(folder, dir, "strategies.late.select.name=top_k", "strategies.late.score.name=mean_force_spread")
    assert {place: results[place] for place in whole} == whole and len(results["water", "late"]) == 6


def test_energies_without_forces_and_a_barrier(tmp_path):
    folder = folder_of(tmp_path, CONTEST + WATER)
    for name in ("water.xyz", "test.xyz"):
        bare = frames(30, int(name == "test.xyz"))
        for atoms in bare:
            atoms.calc.results.pop("forces")
        write(folder / name, bare, format="extxyz")
    write(folder / "path.xyz", frames(4, 2), format="extxyz")
    results = held(folder, folder / "out", "tasks.water.path=path.xyz", "budgets=[5,8]", only=("random",))
    for record in results["water", "random"]:
        assert "force_rmse" not in record and np.isfinite([record["energy_rmse"], record["barrier_error"]]).all()
    summary = json.loads((folder / "out" / "summary.json").read_text())["tasks"]["water"]
    assert summary["metric"] == "energy_rmse"
    first, last = (np.mean([r["energy_rmse"] for r in results["water", "random"] if r["round"] == n]) for n in (0, 1))
    assert max(first, last) < 0.5  # eV/atom: references and offsets fit


@pytest.mark.slow
def test_stress_is_learned_where_there_is_some(tmp_path):
    write(tmp_path / "copper.xyz", frames(24, 0, crystal=True), format="extxyz")
    text = CONTEST.replace("cutoff: 3.0", "cutoff: 3.2").replace("holdout: 0.2", "holdout: 0.2, stress_weight: 5.0")
    (tmp_path / "contest.yaml").write_text(text + "tasks: {copper: {pool: copper.xyz}}\n")
    results = held(tmp_path, tmp_path / "out", "tasks.copper.budgets=[5,8]", only=("random",))
    assert all(0 < record["stress_rmse"] < 1 for record in results["copper", "random"])


LIVE = """
tasks:
  water:
    live:
      system: {file: start.xyz}
      explore: {temperature: 300 K, walkers: 2}
      label: {name: tblite}
      every: 3
      looks: 3
      test_every: 5
    test_frames: 6
    path: path.xyz
    budgets: [5, 8, 11]
"""


def test_a_time_step_that_is_too_long_is_told(tmp_path):
    (tmp_path / "contest.yaml").write_text(CONTEST + LIVE)
    for file in ("start.xyz", "path.xyz"):
        write(tmp_path / file, molecule("H2O"))
    contest = schema.load(tmp_path / "contest.yaml", ["tasks.water.live.explore.timestep=4"])
    with pytest.warns(InputWarning, match=r"^tasks\.water\.live\.explore\.timestep: 4 fs is long for the O-H stretch"):
        check("water", contest.tasks["water"], ())


@pytest.mark.slow
def test_a_live_task_pays_for_no_label_twice(tmp_path, monkeypatch):
    (tmp_path / "contest.yaml").write_text(CONTEST + LIVE)
    write(tmp_path / "start.xyz", molecule("H2O"))
    write(tmp_path / "path.xyz", [molecule("H2O"), Atoms("OHH", [[0, 0, 0.12], [0, 0.8, -0.5], [0, -0.75, -0.45]])])
    monkeypatch.setattr("jaxal.contest.data.SETTLE", 5)
    results = held(tmp_path, tmp_path / "one", only=("random",))
    for record in results["water", "random"]:
        assert record["failed"] == 0 and record["labels"] == (5, 8, 11)[record["round"]]
        assert np.isfinite([record["force_rmse"], record["barrier_error"]]).all()

    store = tmp_path / "one" / "data" / "water" / STORE
    opened = open_store(store)
    rows = len(list(opened.all()))
    opened.close()
    assert rows <= 2 * 11 + 6 + 2
    # again, with all labels known: nothing is calculated
    (tmp_path / "two" / "data" / "water").mkdir(parents=True)
    for name in (STORE, "test.xyz"):
        (tmp_path / "two" / "data" / "water" / name).write_bytes((store.parent / name).read_bytes())
    (tmp_path / "two" / "contest.json").write_bytes((tmp_path / "one" / "contest.json").read_bytes())
    assert held(tmp_path, tmp_path / "two", only=("random",)) == results
    opened = open_store(tmp_path / "two" / "data" / "water" / STORE)
    assert len(list(opened.all())) == rows
    opened.close()


@pytest.mark.parametrize(
    "override, message",
    [
        ("tasks.water.pool=missing.xyz", "tasks.water.pool: there is no file"),
        ("data=nowhere", "data: there is no folder"),
        ("tasks.water.budgets=[8,5]", "tasks.water.budgets: [8, 5] does not fit"),
        ("tasks.water.budgets=[5]", "tasks.water.budgets: [5] does not fit"),
        ("budgets=[5,400]", "tasks.water.budgets: 400 is too large; the pool"),
        ("seeds=1", "seeds: 1 is too small"),
        ("strategies.mine.select.name=nothing", "strategies.mine.select.name: unknown select"),
        ("strategies.mine.selct.name=top_k", "strategies.mine.selct: unknown field; did you mean select?"),
        ("strategies={'a/b': {}}", "strategies: 'a/b' is no name"),
        ("grids=[{select: [nothing]}]", "grids[0].select: unknown select 'nothing'"),
        ("grids=[{}]", "grids[0]: empty"),
        ("strategies.one.committee={members: 1}", "strategies.one: committee.members: 1 has no spread"),
        ("strategies.random.select.name=top_k", "strategies.random: this name is that of a baseline"),
        ("tasks.water.live.system.file=test.xyz", "tasks.water: give either pool"),
        ("tasks={}", "tasks: missing"),
        ("tasks.water.test=contest.yaml", "contest.yaml: ASE cannot read it"),
    ],
)
def test_a_mistake_is_one_line_before_anything_is_computed(folder, tmp_path, capsys, override, message):
    assert main(["contest", str(folder / "contest.yaml"), override, "--dir", str(tmp_path / "new")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("jaxal: error: ") and error.count("\n") == 1 and message in error, error
    assert not (tmp_path / "new").exists()


def test_a_pool_of_two_charges_is_two_surfaces_of_each_model(tmp_path):
    folder = folder_of(tmp_path)
    both = frames(20, 0) + frames(20, 2)
    for atoms in both[20:]:
        atoms.calc.results["energy"] += 12.0
        atoms.info |= {"charge": 1, "spin": 1}
    write(folder / "water.xyz", both)
    contest = schema.load(folder / "contest.yaml")
    task = contest.tasks["water"]
    with opened("water", task, tmp_path / "kept", "float32") as source:
        potential = arena(contest, "water", task, source).task.potential
    assert potential is not None and potential["electrons"] == "on"
    with pytest.raises(InputError, match=r"^tasks\.water\.potential\.electrons: off does not fit"):
        check("water", schema.load(folder / "contest.yaml", ["potential.electrons=off"]).tasks["water"], ())
    write(folder / "water.xyz", both[20:])
    with pytest.raises(InputError, match="frame 0 has charge 0 with 0 unpaired electrons, of which the pool"):
        check("water", task, ())


def test_parts_that_no_line_names_are_there_in_a_process_of_its_own(folder, tmp_path):
    """Others have imported all of them in this one."""
    process = alone("contest", folder / "contest.yaml", "budgets=[5,400]", "--dir", tmp_path / "new")
    assert (
        process.returncode == 2 and process.stderr.startswith("jaxal: error: ") and process.stderr.count("\n") == 1
    ), process.stderr
    assert "tasks.water.budgets: 400 is too large" in process.stderr


def test_a_folder_of_something_else_is_refused(folder, tmp_path):
    (tmp_path / "note.txt").write_text("mine")
    with pytest.raises(InputError, match=r"is in use and holds no contest\.json"):
        held(folder, tmp_path)
    assert [path.name for path in tmp_path.iterdir() if path.name != "lock"] == ["note.txt"]


def test_grids_name_their_strategies_and_every_model_has_baselines(folder):
    contest = schema.load(
        folder / "contest.yaml",
        ["strategies={}", "grids=[{select: all}, {select: [top_k], committee: {members: 3}}]"],
    )
    entered = schema.entrants(contest)
    names = [entrant.name for entrant in entered]
    assert len(set(names)) == len(names) and {"random", "farthest", "top_k"} <= set(names)
    assert {"full3+top_k", "full3+random", "full3+farthest"} <= set(names)
    for entrant in entered:
        own = schema.baseline(entrant, entered)
        assert own.model == entrant.model and own.select.name == "random"


SEEKING = {
    "annealed": {"schedule": {"name": "annealed", "of": ["random", "top_k"]}},
    "learned": {"schedule": {"name": "bandit", "of": ["top_k", "random"], "rule": "ucb1"}},
}


def test_schedules_choose_by_their_arms(folder, whole, tmp_path):
    """A bandit begins with its first arm and then plays the other; on its way from random the second is a mixture."""
    results = held(folder, tmp_path / "out", f"strategies={json.dumps(SEEKING)}", only=("annealed", "learned"))

    def part(records, number):
        return [{k: v for k, v in r.items() if k != "strategy"} for r in records if r["round"] == number]

    assert part(results["water", "learned"], 1) == part(whole["water", "greedy"], 1)
    assert part(results["water", "learned"], 2) != part(whole["water", "greedy"], 2)
    assert part(results["water", "annealed"], 1) != part(whole["water", "greedy"], 1)
    labels = [[r["labels"] for r in results["water", name] if r["seed"] == 0] for name in SEEKING]
    assert labels == [[5, 8, 11]] * 2


@pytest.mark.slow
def test_walkers_of_a_live_task_may_be_driven(tmp_path, monkeypatch):
    """A bias, and one member in place of the mean, lead elsewhere; what they begin with is the same."""
    (tmp_path / "contest.yaml").write_text(CONTEST + LIVE)
    write(tmp_path / "start.xyz", molecule("H2O"))
    write(tmp_path / "path.xyz", [molecule("H2O")] * 2)
    monkeypatch.setattr("jaxal.contest.data.SETTLE", 5)
    select = {"select": {"name": "random"}}
    strategies = {"pushed": select | {"bias": {"name": "hyperactive"}}, "thompson": select | {"drive": "member"}}
    override = f"strategies={json.dumps(strategies)}"
    results = held(tmp_path, tmp_path / "out", override, only=("random", "pushed", "thompson"))
    first = [[r["force_rmse"] for r in results["water", name] if r["round"] == 0] for name in ("random", *strategies)]
    last = [[r["force_rmse"] for r in results["water", name] if r["round"] == 2] for name in ("random", *strategies)]
    assert first[0] == first[1] == first[2] and len({tuple(errors) for errors in last}) == 3
    assert np.all(np.isfinite(last))


@pytest.mark.parametrize(
    "strategy, message",
    [
        (
            {"schedule": SEEKING["learned"]["schedule"], "select": {"name": "top_k"}},
            "strategies.one.select: does not go",
        ),
        ({"bias": {"name": "hyperactive"}}, "strategies.one.bias: nothing is driven in tasks.water"),
        ({"drive": "member"}, "strategies.one.drive: nothing is driven in tasks.water"),
        ({"schedule": {"name": "bandit", "of": ["top_k", "nothing"]}}, "schedule.of: unknown select 'nothing'"),
    ],
)
def test_what_a_strategy_cannot_be_is_one_line(folder, tmp_path, capsys, strategy, message):
    override = f"strategies={json.dumps({'one': strategy})}"
    assert main(["contest", str(folder / "contest.yaml"), override, "--dir", str(tmp_path / "new")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and message in error, error
    assert not (tmp_path / "new").exists()


# ---------------------------------------------------------------- data that do not fit


def tasks(folder, *overrides):
    """The task of a contest's file."""
    return schema.load(folder / "contest.yaml", overrides).tasks["water"]


def test_frames_of_the_test_that_are_in_the_pool_are_left_out(tmp_path):
    folder = folder_of(tmp_path)
    write(folder / "test.xyz", frames(3, 1) + frames(40, 0)[:2], format="extxyz")
    task = tasks(folder)
    with (
        pytest.warns(InputWarning, match=r"^tasks\.water\.test: 2 of 5 frames are in the pool, too; left out"),
        opened("water", task, tmp_path / "kept", "float32") as source,
    ):
        assert source.data.tests == 3 and source.data.answers.energy.shape == (3,)
    write(folder / "test.xyz", frames(40, 0)[:2], format="extxyz")
    with (
        pytest.warns(InputWarning, match="2 of 2 frames"),
        pytest.raises(
            InputError, match=r"^tasks\.water\.test: no frame is left for the test; give a file, or a larger"
        ),
    ):
        check("water", task, ())


def test_without_a_file_the_test_is_spread_over_the_pool(tmp_path):
    """Every third of a pool of few, and never in both; at most so many, evenly spaced, where they are many."""
    folder = folder_of(tmp_path, CONTEST + "tasks: {water: {pool: water.xyz}}\n")
    for most, tests in ((1000, 13), (10, 10)):
        with opened("water", tasks(folder, f"tasks.water.test_frames={most}"), tmp_path / "kept", "float32") as source:
            data = source.data
        assert data.tests == tests and len(data.pool.charge) == 40 - tests
        pool, test = (np.asarray(part.position).reshape(-1, 9) for part in (data.pool, data.exam))
        assert not set(map(tuple, pool)) & set(map(tuple, test))


def test_a_path_is_after_the_test_frames(tmp_path):
    folder = folder_of(tmp_path, CONTEST + "tasks: {water: {pool: water.xyz, test: test.xyz, path: path.xyz}}\n")
    images = frames(4, 7)
    write(folder / "path.xyz", images, format="extxyz")
    with opened("water", tasks(folder), tmp_path / "kept", "float32") as source:
        assert source.data.tests == 12
        np.testing.assert_allclose(source.data.answers.energy[12:], [image.get_potential_energy() for image in images])
    write(folder / "path.xyz", frames(1, 0, crystal=True), format="extxyz")
    with pytest.raises(InputError, match=r"path\.xyz.*Cu.*water\.xyz"):
        check("water", tasks(folder), ())


def test_a_pool_without_forces_is_measured_by_its_energies(tmp_path):
    folder = folder_of(tmp_path)
    for name, number, seed in (("water.xyz", 40, 0), ("test.xyz", 12, 1)):
        images = frames(number, seed)
        for atoms in images:
            del atoms.calc.results["forces"]
        write(folder / name, images, format="extxyz")
    task = tasks(folder, "tasks.water.metric=force")
    with (
        pytest.raises(
            InputError, match=r"^tasks\.water\.metric: force does not fit, .*water\.xyz or its test has no fo"
        ),
        opened("water", task, tmp_path / "kept", "float32"),
    ):
        pass
    with opened("water", tasks(folder), tmp_path / "kept", "float32") as source:
        assert not source.data.forces and not source.data.stress


NEAR = Atoms("OHH", [[0, 0, 0], [0, 0, 0.2], [0, 0.9, 0]])


@pytest.mark.parametrize(
    ("override", "starts", "message"),
    [
        ("live.looks=1", molecule("H2O"), "live.looks: 1 looks at 2 walkers are too few candidates for 3 labels in a "),
        ("metric=energy", molecule("H2O"), "metric: energy does not fit a live task, which has forces; give force"),
        ("live.looks=3", NEAR, "live.system.file: "),
        ("live.looks=3", Atoms("ThO", [[0, 0, 0], [0, 0, 1.84]]), "live.label: "),
        ("live.system.index=all", [molecule("H2O")] * 6, "budgets: 5 is too small; 6 start structures come first"),
        (
            "live.explore={name: npt_nose_hoover, walkers: 2}",
            molecule("H2O"),
            "live.explore.name: npt_nose_hoover needs a cell that is periodic in all three directions",
        ),
    ],
)
def test_a_live_task_that_cannot_be_is_refused_before_anything_is_computed(tmp_path, override, starts, message):
    (tmp_path / "contest.yaml").write_text(CONTEST + LIVE)
    write(tmp_path / "start.xyz", starts)
    write(tmp_path / "path.xyz", molecule("H2O"))
    with pytest.raises(InputError) as error:
        contest = schema.load(tmp_path / "contest.yaml", [f"tasks.water.{override}"])
        check("water", contest.tasks["water"], schema.entrants(contest))
    assert f"tasks.water.{message}" in str(error.value) and "\n" not in str(error.value)


def test_models_that_differ_in_their_options_only_are_numbered(folder):
    overrides = ["strategies={}", "grids=[{select: [top_k]}, {uncertainty: [dropout]}]"]
    overrides += ["strategies={a: {uncertainty: {name: dropout, rate: 0.3}}}"]
    names = [entrant.name for entrant in schema.entrants(schema.load(folder / "contest.yaml", overrides))]
    assert {"top_k", "dropout", "dropout-1+random", "dropout-2+random", "a"} <= set(names)


def test_a_grid_cannot_choose_what_has_no_default(folder, monkeypatch):
    def needy(key, candidates, size, *, where: str):
        """Needs to be told."""

    monkeypatch.setitem(registry._table, "select", registry._table["select"] | {"needy": needy})
    with pytest.raises(
        InputError, match=r"contest\.yaml: grids: select needy needs its option where; make it one of the strategies"
    ):
        schema.entrants(schema.load(folder / "contest.yaml", ["grids=[{select: [needy]}]"]))


def test_the_frames_of_a_live_task_are_of_its_atoms_in_their_order(tmp_path):
    (tmp_path / "contest.yaml").write_text(CONTEST + LIVE)
    write(tmp_path / "start.xyz", molecule("H2O"))
    live = schema.load(tmp_path / "contest.yaml", ["tasks.water.path=start.xyz"]).tasks["water"].live
    assert live is not None
    start = of_atoms(molecule("H2O"), labeled=False)
    for name, atoms, message in (
        ("order.xyz", molecule("H2O")[[1, 0, 2]], r"frame 1 needs the atoms of .*start\.xyz, in their order"),
        ("other.xyz", molecule("H2O"), r"frame 1: "),
    ):
        if name == "other.xyz":
            atoms.info["charge"] = 1
        write(tmp_path / name, [molecule("H2O"), atoms])
        with pytest.raises(InputError, match=rf"{name}: {message}"):
            data._like("water", live, start, tmp_path / name)


def test_dynamics_that_the_labeler_cannot_follow_say_what_to_change(tmp_path, monkeypatch):
    (tmp_path / "contest.yaml").write_text(CONTEST + LIVE)
    write(tmp_path / "start.xyz", molecule("H2O"))
    write(tmp_path / "path.xyz", molecule("H2O"))
    contest = schema.load(tmp_path / "contest.yaml", ["tasks.water.live.test_temperature=1e9"])
    task = contest.tasks["water"]
    assert task.live is not None
    with pytest.raises(
        InputError, match=r"^tasks\.water\.live: the labeler's dynamics at 1e\+09 K fails \(.*\); give a low"
    ):
        data._dynamics("water", task, task.live, molecule("H2O"), tmp_path)
    assert not (tmp_path / "test.xyz").exists()


@pytest.mark.parametrize(
    ("only", "message"),
    [(("fastest",), "--only: 'fastest' is neither task nor strategy; tasks are water; strategies are random, farth")],
)
def test_a_name_that_is_not_there_is_refused(folder, tmp_path, only, message):
    with pytest.raises(InputError, match=f"^{message}"):
        held(folder, tmp_path / "new", only=only)
    assert not (tmp_path / "new").exists()


def test_a_file_in_the_place_of_the_folder_is_refused(folder, tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InputError, match=f"^{tmp_path}/file: is no folder; give another with --dir"):
        held(folder, tmp_path / "file")
    (tmp_path / "contest.json").write_text("{")
    with pytest.raises(
        InputError, match=rf"^{tmp_path}/contest\.json: cannot be read \(.*give another folder with --dir"
    ):
        held(folder, tmp_path)
