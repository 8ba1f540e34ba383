"""Is one tree slower than another? `jaxal bench` in both, in alternation.

    python scripts/bench_trees.py BEFORE AFTER [--rounds 5]

BEFORE and AFTER are checkouts of the project; both run with this interpreter. Each round times every case in both,
the order turned from round to round. The table has the medians over the rounds of the best times and of their ratio,
after to before, pair by pair, and the range of the ratios. Needs a quiet machine.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

CASES = {
    "forces": ("--system", "aspirin,si64,si216", "--walkers", "2"),
    "train": ("--system", "aspirin"),
    "segment": ("--system", "aspirin", "--walkers", "8"),
}
START = "import sys; from jaxal.cli{} import main; raise SystemExit(main(sys.argv[1:]))"
TIMES = {"wall": "wall_ms_min", "CPU": "cpu_ms_min"}


def times(tree: Path, case: str, repeats: int) -> dict[tuple[str, str], dict[str, float]]:
    """Milliseconds for a unit, by case and system."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "records.jsonl"
        code = START.format(".main" if (tree / "jaxal/cli/main.py").exists() else "")
        options = ("--members", "4", "--repeats", str(repeats), "--out", str(out), *CASES[case])
        command = [sys.executable, "-c", code, "bench", case, *options]
        environment = os.environ | {"PYTHONPATH": str(tree), "JAX_PLATFORMS": "cpu"}
        subprocess.run(command, env=environment, cwd=folder, check=True, stdout=subprocess.DEVNULL)
        records = [json.loads(line) for line in out.read_text().splitlines()]
    failed = [record["error"] for record in records if "error" in record]
    if failed:
        raise SystemExit(f"{tree}: {case}: {failed[0]}")
    return {(r["mode"], r["system"]): {name: r[key] for name, key in TIMES.items()} for r in records}


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=7, help="calls timed in each round")
    arguments = parser.parse_args()
    trees = [arguments.before.resolve(), arguments.after.resolve()]
    rounds: list[dict[tuple[str, str, Path], dict[str, float]]] = []
    for number in range(arguments.rounds):
        measured = {}
        for case in CASES:
            for tree in trees if number % 2 == 0 else trees[::-1]:
                measured |= {(*key, tree): row for key, row in times(tree, case, arguments.repeats).items()}
        rounds.append(measured)
        print(f"round {number + 1} of {arguments.rounds}", file=sys.stderr, flush=True)
    print("| case | system | time | before, ms | after, ms | after / before | range |\n|---|---|---|---|---|---|---|")
    for case, system in [key[:2] for key in rounds[0] if key[2] == trees[0]]:
        for name in TIMES:
            before, after = ([measured[case, system, tree][name] for measured in rounds] for tree in trees)
            ratios = [new / old for old, new in zip(before, after, strict=True)]
            medians = (statistics.median(values) for values in (before, after, ratios))
            figures = "| {:.1f} | {:.1f} | {:.3f} |".format(*medians)
            print(f"| {case} | {system} | {name} {figures} {min(ratios):.3f} to {max(ratios):.3f} |")


if __name__ == "__main__":
    main()
