"""A run whose walkers are mostly rewound ends with what to change, and so does one that replays a segment for ever."""

import signal
import threading
import time

import jax.numpy as jnp
import numpy as np
import pytest
from ase.build import molecule
from structures import plain

from jaxal.config.loading import load
from jaxal.config.systems import populations
from jaxal.core.types import InputError, WalkerState
from jaxal.data import neighbors
from jaxal.data.structure import species_table
from jaxal.explore.dynamics import nve
from jaxal.explore.stepping import per_walker
from jaxal.program import state as states
from jaxal.program.step import APART, CAUSES, HOT, UNCERTAIN
from jaxal.run import assembly, exploration, folder, persistence, session, stop
from jaxal.run.session import RECENT, Progress, Run

WALKERS = 2
LOOKS = assembly.LOOKS * WALKERS  # in a segment


@pytest.fixture
def run(tmp_path):
    (tmp_path / "water.xyz").write_text("3\n\nO 0 0 0.12\nH 0 0.76 -0.48\nH 0 -0.76 -0.48\n")
    (tmp_path / "config.yaml").write_text(
        f"{{system: {{file: water.xyz}}, explore: {{walkers: {WALKERS}}}, stop: {{time: 1 ps}}, devices: 1}}"
    )
    config = load(tmp_path / "config.yaml")
    systems = populations(config)
    return Run(config, tmp_path, systems, [[0]], species_table(systems[0].starts), lambda status: None, 0.0)


def progress(rewinds, look=0):
    return Progress([], "", [], [], look=look, rewinds=rewinds)


def counts(**causes):
    """Of one segment, by cause."""
    return [causes.get(name, 0) for name in ("uncertain", "close", "hot", "apart", "broken")]


def test_causes_are_counted_in_their_order():
    assert CAUSES[UNCERTAIN] == "too uncertain" and CAUSES[HOT] == "too hot" and CAUSES[APART] == "in pieces"
    assert set(stop.REMEDIES) == set(CAUSES[1:])


@pytest.mark.parametrize(
    ("segment", "message"),
    [
        (counts(hot=9, apart=2), "(too hot 82 %, in pieces 18 %); in a new run lower explore.timestep"),
        (counts(uncertain=20), "explore: 100 % of the last 200 looks at each walker were rewinds"),
        (counts(uncertain=20), "raise gate.implausible"),
        (counts(hot=5, uncertain=5), ""),  # half of them
    ],
)
def test_mostly_rewound(run, segment, message):
    assert sum(segment) <= LOOKS
    wrong = stop.verdict(run, progress([segment] * RECENT), 0.0).wrong
    assert message in wrong and bool(message) == bool(wrong) and "\n" not in wrong
    # before so many segments there is nothing to tell, unless the run is over
    few = progress([segment] * 3)
    assert stop.verdict(run, few, 0.0) == ("", "")
    few.look = 200  # 1 ps of looks each 10 steps of 0.5 fs
    why, wrong = stop.verdict(run, few, 0.0)
    assert (why == "1 ps of dynamics") == (not message) and bool(wrong) == bool(message)


def test_a_time_step_too_long_for_the_bonds_is_what_to_change(run):
    slow = load(run.directory / "config.yaml", ["explore.timestep=4"]).explore.part
    hydrogen = run._replace(systems=[run.systems[0]._replace(starts=[molecule("H2")], explore=slow)])
    wrong = stop.verdict(hydrogen, progress([counts(uncertain=20)] * RECENT), 0.0).wrong
    assert "in a new run lower explore.timestep: 4 fs is long for the H-H stretch" in wrong


def test_a_segment_is_replayed_a_bounded_number_of_times(run, monkeypatch):
    """Neighbors overflow whatever room there is: each time there is more, then the run ends with its state kept."""
    zero = jnp.zeros((2, 3, 3))
    none = jnp.zeros(2, jnp.int32)
    water = plain(jnp.asarray([np.eye(3)] * 2), jnp.zeros((2, 3), jnp.int32), zero, none, none)
    blank = states.State._make([None] * len(states.State._fields))  # pyright: ignore
    walkers = WalkerState(water, None, zero, none)
    state, kept = blank._replace(walkers=(walkers,), problems=jnp.int32(0)), []
    monkeypatch.setattr(persistence, "save", lambda run, progress, state: kept.append(state))
    monkeypatch.setattr(folder, "append", lambda directory, lines: kept.append(lines))

    def segment(state, limits):
        return state._replace(problems=state.problems | states.NEIGHBORS_FULL), None

    parts = states.Parts._make([None] * len(states.Parts._fields))._replace(samplers=(per_walker(nve()),))  # pyright: ignore
    programs = exploration.Programs(parts, None, segment, None)  # pyright: ignore
    monkeypatch.setattr(exploration, "_compiled", lambda *_: programs)
    spec = session.spec_out(neighbors.Spec(4.0, 0.5, 1, (0, 0, 0)))
    labels = exploration.Labels(None, None, list, float)
    now = Progress([], "", [spec], spec, rate=1e-3)
    sitting = exploration._Sitting(run, now, labels, state, programs, 0.0, 0.0)
    for _ in range(exploration.REPLAYS):
        assert sitting.walked() == (None, [])
    with pytest.raises(InputError, match="a segment was replayed 8 times and there still are more neighbors than") as e:
        sitting.walked()
    assert "\n" not in str(e.value) and "lower explore.timestep" in str(e.value)
    (line,), last = kept
    assert line["phase"] == "stopped" and line["why"] == str(e.value) and isinstance(last, states.State)


@pytest.mark.parametrize(
    ("asked", "failed", "wrong"),
    [(19, 19, False), (20, 10, False), (20, 11, True), (400, 201, True)],
)
def test_labels_that_mostly_fail_end_it(run, asked, failed, wrong):
    now = progress([])
    now.asked, now.failed = asked, failed
    says = f"label: {failed} of {asked} labels failed; see `reason` in {run.store} and mend the method before going on"
    assert stop.verdict(run, now, 0.0).wrong == (says if wrong else "")


@pytest.mark.parametrize(
    ("field", "asked", "quiet", "over", "why"),
    [
        ("stop.labels=40", 39, 0.0, False, ""),
        ("stop.labels=40", 40, 0.0, False, "label budget of 40"),
        ("stop.quiet=2 ps", 0, 2.0, False, "quiet for 2 ps"),
        ("stop.wall=1 h", 0, 0.0, False, ""),
        ("stop.wall=1 h", 0, 0.0, True, "all walkers have come to their end"),
        ("stop.wall=0.001 s", 0, 0.0, True, "0.001 s of wall time"),
    ],
)
def test_the_reasons_to_stop(run, field, asked, quiet, over, why):
    began = time.monotonic() - 1.0  # s ago
    limited = run._replace(config=load(run.directory / "config.yaml", [field]), began=began)
    now = progress([])
    now.asked = asked
    assert stop.verdict(limited, now, quiet, over) == (why, "")


@pytest.mark.parametrize(("number", "name"), [(signal.SIGINT, "Ctrl-C"), (signal.SIGTERM, "SIGTERM")])
def test_a_signal_is_remembered_and_what_was_before_comes_back(tmp_path, capfd, number, name):
    before = signal.getsignal(number)
    with stop.interruptible(tmp_path) as ended:
        assert not ended()
        signal.raise_signal(number)
        assert ended()
    assert signal.getsignal(number) is before
    assert capfd.readouterr().err == f"\njaxal: {name}: ends after the present segment (once more: at once)\n"


def test_outside_of_the_main_thread_it_is_never_told_and_takes_no_signal(tmp_path):
    before, said = signal.getsignal(signal.SIGINT), []

    def work():
        with stop.interruptible(tmp_path) as ended:
            said.extend([ended(), signal.getsignal(signal.SIGINT)])

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert said == [False, before]
