"""Devices that are not here: what XLA has to know of each to compile for it."""

import importlib.util
import os
import re
from importlib.metadata import requires, version
from pathlib import Path
from typing import Any, NamedTuple

from jaxal.core.errors import InputError


class Target(NamedTuple):
    """A device by its data sheet."""

    name: str
    platform: str  # gpu or tpu
    kind: str  # as JAX calls it
    memory: int  # bytes
    topology: str = ""  # of a TPU
    cores: int = 0  # streaming multiprocessors of a GPU
    capability: tuple[int, int] = (0, 0)
    bandwidth: float = 0.0  # bytes/s
    clock: float = 0.0  # GHz
    lanes: int = 128  # float32 units of a multiprocessor
    shared: int = 0  # bytes of shared memory of a multiprocessor
    cache: int = 0  # bytes of the last cache before memory


GB = 10**9
MB = 2**20
KB = 2**10
# NVIDIA's data sheets and CUDA C Programming Guide (compute capabilities 8.0 and 9.0); Google's pages of v5e and v6e.
TARGETS = {
    target.name: target
    for target in (
        Target("h100", "gpu", "NVIDIA H100 80GB HBM3", 80 * GB, "", 132, (9, 0), 3.35e12, 1.98, 128, 228 * KB, 50 * MB),
        Target("h200", "gpu", "NVIDIA H200", 141 * GB, "", 132, (9, 0), 4.8e12, 1.98, 128, 228 * KB, 50 * MB),
        Target("a100", "gpu", "NVIDIA A100-SXM4-80GB", 80 * GB, "", 108, (8, 0), 2.039e12, 1.41, 64, 164 * KB, 40 * MB),
        Target("v5e", "tpu", "TPU v5 lite", 16 * GB, "v5e:2x2"),
        Target("v6e", "tpu", "TPU v6 lite", 32 * GB, "v6e:2x2"),
    )
}
ACCELERATOR = {"v5e": "v5litepod-4", "v6e": "v6e-4"}  # as the library wants it called
# what could only be measured on the device is left to rules
FLAGS = "--xla_gpu_enable_triton_gemm=false --xla_gpu_autotune_level=0"


def prepare(name: str) -> Target:
    """The target of this name, after what must be set before JAX looks for devices.

    Raises InputError for an unknown one, and where the compiler for it is not installed.
    """
    if name not in TARGETS:
        raise InputError(f"--device: unknown device {name!r}; there are {', '.join(TARGETS)}, and this")
    target = TARGETS[name]
    packages = ("jax_cuda12_plugin", "nvidia.cuda_nvcc") if target.platform == "gpu" else ("libtpu",)
    if missing := [package for package in packages if not _installed(package)]:
        extra = "plan-cuda" if target.platform == "gpu" else "plan-tpu"
        raise InputError(
            f"--device: {name} needs a compiler that is not here ({', '.join(missing)}); "
            f"install it with `pip install 'jaxal[{extra}]'`, no {target.platform.upper()} is needed"
        )
    package, release = compiler(target.platform)
    if not version(package).startswith(release):
        raise InputError(
            f"--device: {package} {version(package)} is not for jax {version('jax')}; install version {release} of it"
        )
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ["JAX_PLATFORMS"] = "cpu"
    if target.platform == "gpu":
        spec = importlib.util.find_spec("nvidia.cuda_nvcc")
        folder = Path(next(iter(spec.submodule_search_locations or []))) if spec else Path()
        own = f"{FLAGS} --xla_gpu_cuda_data_dir={folder}"
    else:
        os.environ |= {"TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost"}
        os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"  # there is no chip that two could fight for
        os.environ.setdefault("TPU_ACCELERATOR_TYPE", ACCELERATOR[name])  # one serves the topologies of all
        own = ""
    if own not in os.environ.get("XLA_FLAGS", ""):
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {own}".strip()
    return target


def compiler(platform: str) -> tuple[str, str]:
    """The package that compiles for a platform, and the version that this jax asks for: another one may crash."""
    if platform == "gpu":
        return "jax-cuda12-plugin", version("jax")
    requirement = next((line for line in requires("jax") or [] if line.startswith("libtpu==")), "libtpu==")
    return "libtpu", re.split("[*;]", requirement.removeprefix("libtpu=="))[0].strip(" .")


def _installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:
        return False


def device(target: Target) -> Any:
    """The device as JAX compiles for it. Raises InputError where the compiler refuses."""
    import jax
    from jax.experimental import topologies

    jax.config.update("jax_platforms", "cpu")
    jax.devices()
    try:
        if target.platform == "tpu":
            return topologies.get_topology_desc(target.topology, platform="tpu").devices[0]
        text = _description(target)
        return topologies.get_topology_desc(platform="cuda", target_config=text, topology="1x1x1").devices[0]
    except Exception as error:  # whatever the plug-in raises
        reason = " ".join(str(error).split())[:300]
        raise InputError(
            f"--device: the compiler for {target.name} does not start with jax {jax.__version__} ({reason}); "
            "its packages need the version of jax"
        ) from None


def _description(target: Target) -> str:
    """XLA's GpuTargetConfigProto, as text."""
    major, minor = target.capability
    device = {
        "threads_per_block_limit": 1024,
        "threads_per_warp": 32,
        "shared_memory_per_block": 48 * KB,
        "shared_memory_per_core": target.shared,
        "shared_memory_per_block_optin": target.shared - KB,  # a kilobyte of each block is the driver's
        "threads_per_core_limit": 2048,
        "core_count": target.cores,
        "fpus_per_core": target.lanes,
        "block_dim_limit_x": 2**31 - 1,
        "block_dim_limit_y": 2**16 - 1,
        "block_dim_limit_z": 2**16 - 1,
        "memory_bandwidth": int(target.bandwidth),
        "l2_cache_size": target.cache,
        "clock_rate_ghz": target.clock,
        "device_memory_size": target.memory,
        "registers_per_core_limit": 2**16,
        "registers_per_block_limit": 2**16,
    }
    lines = "\n".join(f"  {name}: {value}" for name, value in device.items())
    return f"""gpu_device_info {{
{lines}
  cuda_compute_capability {{ major: {major} minor: {minor} }}
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 7 }}
runtime_version {{ major: 12 minor: 8 patch: 0 }}
device_description_str: "{target.kind}"
"""
