"""Plans: what is counted in a program's text, what a run needs, and programs for a GPU and a TPU that are not here."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase.build import bulk, molecule
from ase.io import write
from commands import SMALL, here
from run_example import WATER

from jaxal.config.loading import load
from jaxal.config.systems import populations
from jaxal.core.placement import compiled_for, placement
from jaxal.core.types import InputError
from jaxal.data.structure import species_table
from jaxal.plan import command, hlo, programs, targets

PACKAGES = os.environ.get("JAXAL_PLAN_PACKAGES", "")  # a folder with the compilers, see .ci/run
MODULE = """HloModule jit_step

%fused (p: f32[8,4]) -> f32[8,4] {
  %p = f32[8,4]{1,0} parameter(0)
  ROOT %n = f32[8,4]{1,0} negate(%p)
}

%body (s: (s32[], f32[8,4])) -> (s32[], f32[8,4]) {
  %s = (s32[], /*index=1*/f32[8,4]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%s), index=0
  %x = f32[8,4]{1,0} get-tuple-element(%s), index=1
  %y = f32[8,4]{1,0} fusion(%x), kind=kLoop, calls=%fused
  ROOT %t = (s32[], f32[8,4]{1,0}) tuple(%i, %y)
}

%condition (s: (s32[], f32[8,4])) -> pred[] {
  %s.1 = (s32[], f32[8,4]{1,0}) parameter(0)
  ROOT %c = pred[] constant(true)
}

%many (a: f32[8,4]) -> f32[8,4] {
  %a = f32[8,4]{1,0} parameter(0)
  %b = f32[8,4]{1,0} fusion(%a), kind=kLoop, calls=%fused
  ROOT %d = f32[8,4]{1,0} copy(%b)
}

%few (e: f32[8,4]) -> f32[8,4] {
  ROOT %e = f32[8,4]{1,0} parameter(0)
}

ENTRY %main (q: f32[8,4], k: bf16[2]) -> f32[8,4] {
  %q = f32[8,4]{1,0} parameter(0)
  %k = bf16[2]{0} parameter(1)
  %zero = s32[] constant(0)
  %in = (s32[], f32[8,4]{1,0}) tuple(%zero, %q)
  %w = (s32[], f32[8,4]{1,0}) while(%in), condition=%condition, body=%body, backend_config={TRIPS}
  %out = f32[8,4]{1,0} get-tuple-element(%w), index=1
  %g = (f32[8,4]{1,0}, s8[4194304]{0}) custom-call(%out, %k), custom_call_target="__cublas$gemm"
  %m = f32[8,4]{1,0} get-tuple-element(%g), index=0
  %place = f32[8,4]{1,0} custom-call(), custom_call_target="AllocateBuffer"
  ROOT %r = f32[8,4]{1,0} conditional(%zero, %m, %m), branch_computations={%many, %few}
}
"""


@pytest.mark.parametrize("trips, rounds, loops", [('{"known_trip_count":{"n":"7"}}', 7, 0), ("{}", 1, 1)])
def test_kernels_bytes_and_loops_of_a_text(trips, rounds, loops):
    """A fusion reads and writes 128 bytes each; a library reads 128 + 4 and writes 128, its workspace left out."""
    text = MODULE.replace("{TRIPS}", trips)
    assert hlo.work(text) == hlo.Work(rounds + 1, 256 * rounds + 260, loops)
    assert hlo.foreign(text) == ("__cublas$gemm",)


def test_a_program_of_xla_is_read():
    def function(x):
        return jax.lax.fori_loop(0, 5, lambda i, y: jnp.sin(y) @ x, x)

    text = jax.jit(function).lower(jax.ShapeDtypeStruct((64, 64), np.float32)).compile().as_text()
    work = hlo.work(text)
    assert 5 <= work.kernels <= 100 and work.bytes >= 5 * 3 * 64 * 64 * 4 and work.loops == 0
    assert hlo.work("") == hlo.Work(0, 0, 0)


def test_programs_are_made_for_the_device_that_is_asked_for():
    assert placement().cpu
    with compiled_for("tpu"):
        assert placement().platform == "tpu" and not placement().cpu
    assert placement().cpu


@pytest.fixture
def water(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write("water.xyz", molecule("H2O"))
    Path("config.yaml").write_text(WATER)
    return Path("config.yaml")


@pytest.mark.slow
def test_a_plan_for_this_machine_is_that_of_its_run(water):
    done = here("plan", water, "--part", SMALL, "--json")
    assert done.returncode == 0, done.stderr
    (record,) = json.loads(done.stdout)
    assert (record["device"], record["atoms"], record["members"], record["walkers"]) == ("cpu", 3, 2, 2)
    assert record["fits"] and record["usable"] < record["memory"] == os.sysconf("SC_PAGE_SIZE") * os.sysconf(
        "SC_PHYS_PAGES"
    )
    assert record["state"] < record["needed"] and record["largest_walkers"] > 1000
    assert record["step"]["kernels"] > 10 and record["training"]["kernels"] > 10
    assert record["segment"]["kernels"] > record["step"]["kernels"]
    text = command.text(record)
    assert "fits           yes: " in text and "2 members, 2 walkers" in text
    tight = record | {"fits": False, "usable": record["needed"] - 1, "largest_walkers": 0}
    assert "NO: " in command.text(tight) and "about 0 fit" in command.text(tight)


def test_more_walkers_need_more_and_the_state_is_counted_to_the_byte(water):
    """Against arrays: the walkers of a state are as many bytes as their shapes say."""
    write("water.xyz", molecule("H2O"))
    text = water.read_text().replace("{name: bonds}", "{cutoff: 3.0, channels: 2, l_max: 1, layers: 1}")
    water.write_text(text.replace("labels: 64", "labels: 32"))
    config = load(water)
    systems = populations(config)
    few, many = (programs.run_of(config, systems, species_table(systems[0].starts), factor) for factor in (1, 3))
    each = (programs.size(many.state.walkers) - programs.size(few.state.walkers)) / 4
    zeros = jax.tree.map(
        lambda x: 0 if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else jnp.zeros(x.shape, x.dtype).nbytes,
        few.state.walkers,
    )
    keys = sum(8 * x.size for x in jax.tree.leaves(few.state.walkers) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key))
    assert programs.size(few.state.walkers) == sum(jax.tree.leaves(zeros)) + keys
    assert each == programs.size(few.state.walkers) / 2 and few.state.buffer.weight.shape[-1] == 32


@pytest.mark.parametrize(
    "device, reason",
    [
        ("h300", "unknown device 'h300'; there are h100, h200, a100, v5e, v6e, and this"),
        ("", "unknown device ''"),
    ],
)
def test_an_unknown_device_is_one_line(water, device, reason):
    done = here("plan", water, "--part", SMALL, "--device", device)
    assert done.returncode == 2 and reason in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.parametrize("device, extra", [("h100", "plan-cuda"), ("v6e", "plan-tpu")])
def test_a_compiler_that_is_not_installed_is_named(water, monkeypatch, device, extra):
    monkeypatch.setattr(targets, "_installed", lambda package: False)
    done = here("plan", water, "--part", SMALL, "--device", device)
    assert done.returncode == 2 and f"pip install 'jaxal[{extra}]'" in done.stderr and done.stderr.count("\n") == 1


def planned(*words: object) -> list[dict]:
    """Plans in a process of its own, which finds the compilers."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, (PACKAGES, os.environ.get("PYTHONPATH"))))}
    for name in ("XLA_FLAGS", "JAX_COMPILATION_CACHE_DIR"):  # what tests on the CPU set
        environment.pop(name, None)
    command = [sys.executable, "-m", "jaxal", "plan", *map(str, words), "--json"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1500)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


POTENTIAL = "{cutoff: 4.0, channels: 8, l_max: 1, layers: 1, radial: 4}"
wanted = dict(map(targets.compiler, ("gpu", "tpu")))  # the versions that this jax asks for
has = {
    name.replace("-", "_"): any(Path(PACKAGES or "nowhere").glob(f"{name.replace('-', '_')}-{of}*.dist-info"))
    for name, of in wanted.items()
}
needs_gpu_compiler = pytest.mark.skipif(
    not has["jax_cuda12_plugin"], reason="JAXAL_PLAN_PACKAGES has no compiler for GPUs"
)
needs_tpu_compiler = pytest.mark.skipif(not has["libtpu"], reason="no compiler for TPUs")


@needs_gpu_compiler
def test_step_training_and_segment_for_an_h100_call_no_factorization(water):
    """Of a periodic structure under a barostat, whose cell is inverted in each step."""
    write("water.xyz", bulk("Si", cubic=True))
    text = (
        water.read_text().replace("{name: bonds}", POTENTIAL).replace("implausible: 50", "implausible: 50, limit: 0.1")
    )
    text = text.replace(", limit: 0.0", "").replace("label: {", "label: {name: stillinger_weber, ")
    water.write_text(text.replace("temperature: 600", "name: npt_nose_hoover, temperature: 600"))
    (record,) = planned(water, "train.stress_weight=1", "--device", "h100")
    assert record["kind"] == "NVIDIA H100 80GB HBM3" and record["fits"] and record["memory"] == 80_000_000_000
    for name in ("step", "training", "segment"):
        calls = record[name]["foreign"]
        assert not [call for call in calls if "solver" in call or "riangular" in call or "LU" in call], calls
    # what they are today (jax 0.10.1: 247 kernels, 63.2 kB), and a little room; more would be slower
    assert record["step"]["kernels"] <= KERNELS and record["bytes_by_atom_member_step"] <= BYTES


KERNELS, BYTES = 255, 65_000


@pytest.mark.slow
@needs_tpu_compiler
def test_a_step_for_a_v5e(water):
    water.write_text(water.read_text().replace("{name: bonds}", POTENTIAL))
    (record,) = planned(water, "--device", "v5e")
    assert record["kind"] == "TPU v5 lite" and record["fits"] and record["largest_walkers"] > 64


# ---------------------------------------------------------------- what is prepared for a device


def package(folder: Path, name: str, release: str, module: str) -> None:
    """An installed package with an empty module."""
    where = folder.joinpath(*module.split("."))
    where.mkdir(parents=True)
    (where / "__init__.py").write_text("")
    info = folder / f"{name.replace('-', '_')}-{release}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {release}\n")


def variables(target: str) -> str:
    """What a process has set for XLA once it has prepared for a device."""
    code = (
        "import json, os; from jaxal.plan import targets; before = dict(os.environ); "
        f"name = targets.prepare({target!r}).name; assert name == {target!r}; once = dict(os.environ); "
        f"targets.prepare({target!r}); assert dict(os.environ) == once, 'set twice'; "
        "print(json.dumps({key: value for key, value in once.items() if before.get(key) != value}))"
    )
    prefixes = ("XLA_FLAGS", "JAX_PLATFORMS", "TF_CPP_MIN_LOG_LEVEL", "TPU_", "ALLOW_")
    environment = {key: value for key, value in os.environ.items() if not key.startswith(prefixes)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    return done.stdout or done.stderr


def test_the_compiler_of_a_gpu_is_set_up_before_jax_looks_for_devices(tmp_path, monkeypatch):
    package(tmp_path, *targets.compiler("gpu"), "jax_cuda12_plugin")
    package(tmp_path, "nvidia-cuda-nvcc-cu12", "12.9", "nvidia.cuda_nvcc")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *filter(None, sys.path)]))
    assert json.loads(variables("h100")) == {
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"{targets.FLAGS} --xla_gpu_cuda_data_dir={tmp_path}/nvidia/cuda_nvcc",
    }


def test_the_compiler_of_a_tpu_looks_for_no_chip(tmp_path, monkeypatch):
    package(tmp_path, *targets.compiler("tpu"), "libtpu")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *filter(None, sys.path)]))
    assert (
        json.loads(variables("v6e")).items()
        >= {
            "TPU_SKIP_MDS_QUERY": "1",
            "TPU_ACCELERATOR_TYPE": "v6e-4",
            "JAX_PLATFORMS": "cpu",
        }.items()
    )


@pytest.mark.parametrize("device, module", [("h100", "jax_cuda12_plugin"), ("v5e", "libtpu")])
def test_a_compiler_of_another_version_is_refused(tmp_path, monkeypatch, device, module):
    """It may crash, or compile what this jax does not know."""
    name, release = targets.compiler(targets.TARGETS[device].platform)
    assert release and release[0].isdecimal()
    package(tmp_path, name, "0.0.1", module)
    if module != "libtpu":
        package(tmp_path, "nvidia-cuda-nvcc-cu12", "12.9", "nvidia.cuda_nvcc")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(
        InputError, match=rf"^--device: {name} 0\.0\.1 is not for jax .*; install version {release} of it$"
    ):
        targets.prepare(device)


@pytest.mark.skipif(any(map(targets._installed, ("libtpu", "jax_cuda12_plugin"))), reason="there is a compiler")
@pytest.mark.parametrize("device", ["h100", "v5e"])
def test_a_compiler_that_does_not_start_is_one_line(device):
    with pytest.raises(InputError, match=f"^--device: the compiler for {device} does not start with jax ") as error:
        targets.device(targets.TARGETS[device])
    assert "\n" not in str(error.value) and str(error.value).endswith("its packages need the version of jax")


@pytest.mark.parametrize("name", ["h100", "h200", "a100"])
def test_the_description_of_a_gpu_is_its_data_sheet(name):
    target = targets.TARGETS[name]
    text = targets._description(target)
    values = dict(
        line.strip().split(": ", 1) for line in text.splitlines() if line.startswith("  ") and "{" not in line
    )
    assert int(values["core_count"]) == target.cores and int(values["device_memory_size"]) == target.memory
    assert float(values["clock_rate_ghz"]) == target.clock and int(values["memory_bandwidth"]) == target.bandwidth
    assert int(values["shared_memory_per_block"]) < int(values["shared_memory_per_block_optin"])
    assert int(values["shared_memory_per_block_optin"]) < int(values["shared_memory_per_core"]) == target.shared
    assert f"cuda_compute_capability {{ major: {target.capability[0]} minor: {target.capability[1]} }}" in text
    assert text.count("{") == text.count("}") and f'device_description_str: "{target.kind}"' in text
