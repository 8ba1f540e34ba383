"""jaxal beside its peers, in alternation on the same systems with the same hyperparameters, one CPU thread each.

    python scripts/bench_peers.py --peers DIR --venvs DIR [--rounds 3] [--out peers.jsonl]

`--peers` is a folder with the peers' scripts (bench_mace.py, bench_nequix.py and their common.py, which print one JSON
record a run), `--venvs` one with a virtual environment for each of them (mace/, nequix/). jaxal runs in the interpreter
that runs this script. Every round measures every program once, one after the other, so that all of them see the same
machine; figures are medians over the rounds. Prints the tables of docs/benchmarks.md; the records go to `--out`.

float32, cutoff 5 Å, 32x0e+32x1o features, l_max 2, two layers, correlation 2, eight Bessel functions. What is not
equal: the radial network (mace-torch 3 x 64, nequix 3 x 64, jaxal 1 x 64 and combinations of eight functions that it
learns), nequix has no symmetric products.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

MODEL = [
    "potential.cutoff=5",
    "potential.channels=32",
    "potential.hidden_l=1",
    "potential.l_max=2",
    "potential.layers=2",
]
MODEL += ["potential.correlation=2", "potential.radial=8", "potential.radial_hidden=64", "potential.repulsion=false"]
SYSTEMS = ("aspirin", "si64", "si216")
MACE_STEPS = {"aspirin": 20, "si64": 10, "si216": 4}


def main() -> None:
    """Runs all rounds and prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", type=Path, required=True)
    parser.add_argument("--venvs", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="*", default=[], help="cases such as md-aspirin, train-ethanol, committee")
    parser.add_argument("--out", type=Path, default=Path("peers.jsonl"))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        systems = _systems(arguments, Path(folder))
        for number in range(arguments.rounds):
            for case, peer, command in _programs(arguments, systems):
                if arguments.only and case not in arguments.only:
                    continue
                record = _run(command) | {"case": case, "peer": peer, "round": number}
                with arguments.out.open("a") as lines:
                    lines.write(json.dumps(record) + "\n")
                print(number, case, peer, record.get("cpu_ms", record.get("error")), file=sys.stderr, flush=True)
    print(table([json.loads(line) for line in arguments.out.read_text().splitlines()]))


def _systems(arguments: argparse.Namespace, folder: Path) -> dict[str, str]:
    """The peers' own systems as files, so that all programs see the same atoms."""
    write = (
        "import sys, ase.io, common\n"
        "for name in sys.argv[2:]:\n"
        "    ase.io.write(f'{sys.argv[1]}/{name}.xyz', common.build_system(name), format='extxyz')\n"
    )
    names = (*SYSTEMS, "ethanol")
    subprocess.run([sys.executable, "-c", write, folder, *names], cwd=arguments.peers, check=True)
    return {name: str(folder / f"{name}.xyz") for name in names}


def _programs(arguments: argparse.Namespace, systems: dict[str, str]) -> list[tuple[str, str, list[str]]]:
    """(case, program, command) in the order of a round."""

    def jaxal(*words: str) -> list[str]:
        with_model = ["--threads", "1", "--repeats", "5", "--set", *MODEL]
        return [sys.executable, "-m", "jaxal", "bench", *words, *with_model]

    def peer(name: str, *words: str) -> list[str]:
        return [str(arguments.venvs / name / "bin/python"), str(arguments.peers / f"bench_{name}.py"), *words]

    programs = []
    for name in SYSTEMS:
        md = ["--mode", "md", "--system", name, "--K", "4", "--repeats", "5"]
        programs.append(
            (f"md-{name}", "jaxal", jaxal("md", "--system", systems[name], "--members", "4", "--steps", "10"))
        )
        programs.append((f"md-{name}", "nequix", peer("nequix", *md, "--steps", "10")))
        programs.append((f"md-{name}", "mace-torch", peer("mace", *md, "--steps", str(MACE_STEPS[name]))))
    train = ["--mode", "train", "--system", "ethanol", "--batch", "5", "--K", "1", "--repeats", "5"]
    own = jaxal("train", "--system", systems["ethanol"], "--members", "1", "--batch", "5", "--steps", "100")
    programs.append(("train-ethanol", "jaxal", own))
    programs.append(("train-ethanol", "nequix", peer("nequix", *train)))
    programs.append(("train-ethanol", "mace-torch", peer("mace", *train)))
    kinds = {"1": [], "8": [], "8-shared": ["--kind", "shared"], "8-shared-2": ["--kind", "shared", "--signs", "2"]}
    for name, words in kinds.items():
        own = jaxal("forces", "--system", systems["si216"], "--members", name[0], *words)
        programs.append((f"forces-si216-{name}", "jaxal", own))
    return programs


def _run(command: list[str]) -> dict[str, Any]:
    """The record that a program prints, or its error."""
    with tempfile.NamedTemporaryFile(suffix=".jsonl") as out:
        mine = "jaxal" in command
        words = [*command[: -len(MODEL) - 1], "--out", out.name, *command[-len(MODEL) - 1 :]] if mine else command
        process = subprocess.run(words, capture_output=True, text=True, env=os.environ | {"BENCH_THREADS": "1"})
        lines = Path(out.name).read_text().splitlines() if mine else process.stdout.splitlines()
    records = [json.loads(line) for line in lines if line.startswith("{")]
    return records[-1] if records else {"error": f"status {process.returncode}: {process.stderr[-400:]}"}


def table(records: list[dict[str, Any]]) -> str:
    """Median CPU ms of every program in every case, and how many times jaxal's that is."""
    cases: dict[str, dict[str, list[float]]] = {}
    for record in records:
        if "cpu_ms" in record:
            cases.setdefault(record["case"], {}).setdefault(record["peer"], []).append(record["cpu_ms"])
    lines = ["| case | jaxal, CPU ms | nequix | mace-torch |", "|---|---|---|---|"]
    for case, programs in cases.items():
        median = {name: statistics.median(values) for name, values in programs.items()}
        mine = median.get("jaxal")
        cells = [f"{mine:.3f}" if mine else ""]
        for name in ("nequix", "mace-torch"):
            cells.append(f"{median[name]:.3f} ({median[name] / mine:.1f}×)" if mine and name in median else "")
        lines.append(f"| {case} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
