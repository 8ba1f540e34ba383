"""`jaxal bench`: every case measures what it says, records hold what they should, mistakes are told."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from commands import alone, here

from jaxal.bench import command, roofline, systems, timing
from jaxal.bench.cases import CASES, Setting
from jaxal.bench.profile import part_of
from jaxal.bench.timing import Timing
from jaxal.config.loading import parse
from jaxal.config.schema import Bench
from jaxal.core.types import InputError

SMALL = [f"potential.{option}" for option in ("channels=2", "l_max=1", "layers=1", "radial=4", "radial_hidden=0")]
PEERS = {"peer", "mode", "system", "atoms", "edges", "edges_padded", "K", "dtype", "params", "versions", "rss_mib"}
PEERS |= {"load1", "threads", "cpu", "when", *Timing._fields}  # the fields of the peer benchmarks' records


def sweep(case, **changes):
    defaults = {"systems": ["ethanol"], "members": [2], "walkers": [2], "precisions": ["float32"], "options": SMALL}
    return command.Sweep(cases=[case], **defaults | {"steps": 2, "batch": 2, "repeats": 1} | changes)


class Clock:
    """Stands for the module `time`: reading the wall clock takes 1 ms, a call of `work` 20 ms and 5 ms of CPU time."""

    def __init__(self):
        self.wall, self.cpu, self.calls = 0.0, 0.0, 0

    def perf_counter(self):
        self.wall += 1e-3
        return self.wall

    def process_time(self):
        self.cpu += 1e-3
        return self.cpu

    def sleep(self, seconds):
        self.wall += seconds

    def work(self):
        self.calls += 1
        self.wall += 20e-3
        self.cpu += 5e-3


def test_measure_counts_units_beside_the_reference(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(timing, "time", clock)
    times = timing.measure(clock.work, units=4, repeats=3, least=0.1, warmup=2)
    assert (times.repeats, times.inner) == (3, 5) and clock.calls == 2 + 3 * 5
    assert times.wall_ms == pytest.approx((5 * 20 + 1) / (5 * 4))
    assert times.cpu_ms == pytest.approx((5 * 5 + 1) / (5 * 4))
    assert times.wall_ms_iqr == pytest.approx(0.0, abs=1e-9) and times.first_call_ms == pytest.approx(21.0)
    assert times.ref_ms == pytest.approx(1.0) and times.ratio == pytest.approx(times.wall_ms)
    assert times.per_s == pytest.approx(1e3 / times.wall_ms) and times.ratio_cpu == pytest.approx(times.cpu_ms)


@pytest.mark.parametrize("case", [pytest.param(c, marks=() if c == "train" else pytest.mark.slow) for c in CASES])
def test_every_case_gives_a_whole_record(case, tmp_path):
    out = tmp_path / "records.jsonl"
    shown = []
    (record,) = command.bench(sweep(case, compile=case == "forces"), out, shown.append)
    assert "error" not in record, record
    assert json.loads(out.read_text()) == json.loads(json.dumps(record))
    assert {*PEERS} - ({"edges", "params"} if case == "segment" else set()) <= set(record)
    assert record["wall_ms"] > 0 and record["compile_s"] > 0
    walkers = 1 if case == "train" else 2
    evaluations = record["atoms"] * walkers * record["K"]
    assert record["us_per_atom_step_member"] == pytest.approx(1e3 * record["wall_ms"] / evaluations, rel=1e-2)
    assert len(shown) == 2 and f"| {case} | ethanol | 2 | 2 |" in shown[1]
    if case == "md":
        assert record["overflow"] is False
    if case == "forces":
        assert 0 < record["kept_s"] < record["compile_s"]
    if case == "segment":
        assert record["problems"] == 0
        assert sum(record["parts"].values()) == pytest.approx(1.0, abs=1e-3)
        assert record["parts"]["forces"] > 0 and record["parts"]["training"] > 0


@pytest.mark.slow
def test_committees_of_both_kinds_are_swept(tmp_path):
    axes = {"kinds": ["full", "shared"], "signs": [0, 2], "members": [1, 6], "walkers": [1]}
    records = command.bench(sweep("forces", **axes), tmp_path / "records.jsonl", lambda line: None)
    assert not any("error" in record for record in records), records
    points = [(record["K"], record["kind"], record["signs"]) for record in records]
    assert points == [(1, "full", 0), (6, "full", 0), (6, "shared", 0), (6, "shared", 2)]
    # the weights of the shared ones are one set with heads, and XLA counts fewer operations for them
    assert records[1]["params"] == records[0]["params"] < records[2]["params"]
    assert records[1]["flops"] > records[2]["flops"] > records[3]["flops"] > records[0]["flops"]


def test_the_dynamics_of_a_case_are_dynamics():
    """The md case moves its walkers and reports a spread, with no neighbor lost."""
    potential = parse({}, cls=Bench, overrides=SMALL).potential
    program = CASES["md"](Setting("ethanol", systems.build("ethanol"), potential, 2, 2, steps=3))
    first, second = np.asarray(program.call()), np.asarray(program.call())
    assert first.shape == (3,) and np.isfinite([first, second]).all()
    assert not np.array_equal(first, second), "the second call goes on where the first one ended"
    assert program.facts["overflow"] is False


@pytest.mark.slow
def test_training_in_a_case_trains():
    potential = parse({}, cls=Bench, overrides=SMALL).potential
    setting = Setting("ethanol", systems.build("ethanol"), potential, 2, steps=2, batch=2)
    few = np.mean(CASES["train"](setting).call())
    many = np.mean(CASES["train"](setting._replace(steps=2000)).call())
    assert many < 0.9 * few, "the mean loss over more steps is smaller"


def test_a_combination_that_fails_is_a_record_and_the_sweep_goes_on(monkeypatch):
    def fails(setting):
        if setting.walkers == 2:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")
        return CASES["md"](setting)

    monkeypatch.setitem(command.CASES, "forces", fails)
    shown = []
    bad, good = command.bench(sweep("forces", walkers=[2, 1]), show=shown.append)
    assert bad["error"].startswith("RESOURCE_EXHAUSTED") and "out of memory" in shown[1]
    assert "error" not in good and good["B"] == 1


@pytest.mark.parametrize(
    "change, message",
    [
        ({"systems": ["si65"]}, "si64"),
        ({"systems": ["nothing"]}, "aspirin, ethanol, si64"),
        ({"options": ["potential.chanels=3"]}, "channels"),
        ({"walkers": [0]}, "walkers"),
        ({"cases": ["fast"]}, "forces, md, segment, train"),
        ({"precisions": ["float16"]}, "float32, float64"),
        ({"options": ["potential.hidden_l=3"]}, "hidden_l"),
        ({"kinds": ["half"]}, "full, shared"),
        ({"kinds": ["shared"], "signs": [0, 1]}, "--signs must be 0"),
        ({"signs": [2]}, "add --kind shared"),
        ({"kinds": ["shared"], "members": [1, 2]}, "2 or more --members"),
        ({"devices": [1, 2]}, "--devices: 2 is too large, there is 1"),
    ],
)
def test_mistakes_are_told_before_anything_is_measured(change, message):
    shown = []
    with pytest.raises(InputError, match=message):
        command.bench(sweep("forces")._replace(**change), show=shown.append)
    assert not shown


def test_systems():
    aspirin, silicon = systems.build("aspirin"), systems.build("si64")
    assert aspirin.get_chemical_formula() == "C9H8O4" and not aspirin.pbc.any()
    assert len(silicon) == 64 and silicon.cell.lengths() == pytest.approx([2 * systems.LATTICE] * 3)
    assert np.std(silicon.positions - systems.build("si64", seed=1).positions) > 0.5 * systems.RATTLE


def test_parts_are_named_by_the_innermost_scope():
    assert part_of("jit(run)/while/body/training/while/body/neighbors/top_k") == "neighbors"
    assert part_of("jit(segment)/while/body/cond/transpose(jvp(training))/mul") == "training"
    assert part_of("jit(segment)/while/body/add") == "other"


def test_roofline_counts_a_matrix_product():
    size = 256
    x = jnp.ones((size, size))
    cost = roofline.cost(jax.jit(lambda x: x @ x).lower(x).compile())
    assert cost is not None and cost.flops == pytest.approx(2 * size**3, rel=0.1)
    assert roofline.peak("NVIDIA H100 80GB HBM3") == (67e12, 3.35e12)
    assert roofline.peak("NVIDIA H200") == (67e12, 4.8e12)
    assert roofline.peak("TPU v5 lite")[1] == 0.819e12
    assert roofline.peak("cpu") is None
    assert roofline.share(roofline.Cost(2e9, 1e9), 0.5) == {"gflop_per_s": 4.0, "gb_per_s": 2.0}


@pytest.mark.slow
def test_command_line(tmp_path):
    tiny = ["--members", "1", "--steps", "1", "--repeats", "1", "--threads", "1", "--set", *SMALL]
    good = alone("bench", "forces", "--system", "ethanol", "--out", "o.jsonl", *tiny, folder=tmp_path)
    assert good.returncode == 0, good.stderr
    assert good.stdout.count("| forces | ethanol |") == 1
    record = json.loads((tmp_path / "o.jsonl").read_text())
    assert record["threads"] == 1 and record["channels"] == 2
    bad = here("bench", "forces", "--system", "si65", *tiny, folder=tmp_path)
    assert (bad.returncode, bad.stdout) == (2, "")
    assert bad.stderr.startswith("jaxal: error: bench: --system si65")
    for words in (["--threads", "0"], ["--out", "no/o.jsonl"]):
        bad = here("bench", "forces", "--system", "ethanol", *words, folder=tmp_path)
        assert bad.returncode == 2 and bad.stderr.startswith(f"jaxal: error: bench: {words[0]} {words[1]}")


@pytest.mark.slow
def test_precisions_share_weights_and_positions(monkeypatch):
    forces = {}
    calculate = CASES["forces"]

    def kept(setting):
        program = calculate(setting)
        forces.setdefault(setting.precision, np.asarray(program.call()[1]))
        return program

    monkeypatch.setitem(command.CASES, "forces", kept)
    records = command.bench(sweep("forces", precisions=["float64", "float32"]), show=lambda line: None)
    assert not any("error" in record for record in records)
    exact, single = forces["float64"], forces["float32"]
    assert (exact.dtype, single.dtype) == (np.float64, np.float32)
    assert 0 < np.abs(single - exact).max() < 1e-4 * np.abs(exact).max()
    assert jnp.ones(()).dtype == jnp.float32, "64 bits end with the case that asked for them"


@pytest.mark.parametrize(
    ("counts", "cost"),
    [
        ({"flops": 3, "bytes accessed": 4}, (3.0, 4.0)),
        ([{"flops": 3}], (3.0, 0.0)),  # as older jax says it
        ({"bytes accessed": 4}, None),
        ([], None),
        (NotImplementedError(), None),
    ],
)
def test_what_a_backend_does_not_count_is_absent(counts, cost):
    class Compiled:
        def cost_analysis(self):
            if isinstance(counts, Exception):
                raise counts
            return counts

    assert roofline.cost(Compiled()) == (None if cost is None else roofline.Cost(*cost))


def test_of_a_known_device_the_shares_of_its_peaks_are_told(monkeypatch):
    monkeypatch.setitem(roofline.PEAKS, jax.devices()[0].device_kind, (2.0, 0.5))  # TFLOP/s, TB/s
    rates = roofline.share(roofline.Cost(1e12, 1e12), 4.0)
    assert rates == {"gflop_per_s": 250.0, "gb_per_s": 250.0, "flop_share": 0.125, "memory_share": 0.5, "roofline": 0.5}
