"""What a program does, by XLA's count, against what the device could do."""

from typing import Any, NamedTuple

import jax

# (float32 TFLOP/s outside tensor cores, TB/s of memory) from the makers' data sheets, by a part of the device's kind.
# TPUs: bfloat16 TFLOP/s, they have no other figure. The first match counts.
PEAKS = {
    "H200": (67.0, 4.8),
    "H100 PCIe": (51.0, 2.0),
    "H100": (67.0, 3.35),
    "GH200": (67.0, 4.0),
    "B200": (80.0, 8.0),
    "A100-PCIE-40GB": (19.5, 1.555),
    "A100-SXM4-40GB": (19.5, 1.555),
    "A100": (19.5, 2.039),
    "A10G": (31.2, 0.6),
    "L40S": (91.6, 0.864),
    "L4": (30.3, 0.3),
    "V100": (15.7, 0.9),
    "T4": (8.1, 0.32),
    "RTX 4090": (82.6, 1.008),
    "RTX 3090": (35.6, 0.936),
    "TPU v4": (275.0, 1.2288),
    "TPU v5 lite": (197.0, 0.819),
    "TPU v5e": (197.0, 0.819),
    "TPU v5": (459.0, 2.765),
    "TPU v6": (918.0, 1.64),
}


class Cost(NamedTuple):
    """What XLA counts for one run of a program."""

    flops: float
    bytes: float


def cost(compiled: Any) -> Cost | None:
    """XLA's count; None where the backend has none. It counts the body of a loop once, however often it runs."""
    try:
        counts: Any = compiled.cost_analysis()
    except (RuntimeError, NotImplementedError, AttributeError):
        return None
    counts = counts[0] if isinstance(counts, list) and counts else counts
    if not counts or "flops" not in counts:
        return None
    return Cost(float(counts["flops"]), float(counts.get("bytes accessed", 0.0)))


def peak(kind: str | None = None) -> tuple[float, float] | None:
    """(FLOP/s, bytes/s) of a kind of device, None where it is not known."""
    kind = jax.devices()[0].device_kind if kind is None else kind
    words = kind.lower().replace("-", " ")
    for name, (flops, memory) in PEAKS.items():
        if f" {name.lower().replace('-', ' ')} " in f" {words} ":
            return 1e12 * flops, 1e12 * memory
    return None


def share(count: Cost, seconds: float) -> dict[str, float]:
    """Rates, and the fractions of the device's peaks where those are known."""
    rates = {"gflop_per_s": count.flops / seconds / 1e9, "gb_per_s": count.bytes / seconds / 1e9}
    best = peak()
    if best is not None:
        rates |= {"flop_share": count.flops / seconds / best[0], "memory_share": count.bytes / seconds / best[1]}
        # the least time the device could have taken, whichever of the two binds
        rates["roofline"] = max(count.flops / best[0], count.bytes / best[1]) / seconds
    return {name: float(f"{value:.4g}") for name, value in rates.items()}
