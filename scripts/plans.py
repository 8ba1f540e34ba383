"""Plans of three configurations for devices that need not be here, as rows of the table in docs/benchmarks.md.

    python scripts/plans.py h100 [--only aspirin ...]

Plans run one after the other, each in a process of its own; those for a TPU take minutes each. With PYTHONPATH at
another version of the package they are plans of its programs.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
ASPIRIN = f"""
system: {{file: {ROOT / "jaxal/bench/aspirin.xyz"}}}
committee: {{members: 4}}
explore: {{walkers: 256}}
label: {{name: tblite, method: GFN2-xTB}}
"""


def plan(config: Path, device: str) -> dict[str, Any]:
    """What `jaxal plan` says of a configuration."""
    command = [sys.executable, "-m", "jaxal", "plan", str(config), "--device", device, "--json"]
    output = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    return json.loads(output)[0]


def row(name: str, device: str, record: dict[str, Any]) -> str:
    """A line of the table."""
    step, training, segment = record["step"], record["training"], record["segment"]
    foreign = sorted({*step["foreign"], *training["foreign"], *segment["foreign"]})
    cells = [
        f"{name}, {record['atoms']} atoms",
        device,
        record["walkers"],
        f"{record['needed'] / 1e6:,.0f} MB",
        f"{float(format(record['largest_walkers'], '.2g')):,.0f}",
        step["kernels"],
        f"{record['bytes_by_atom_member_step'] / 1e3:.0f} kB",
        f"{training['kernels']} kernels, {training['bytes'] / 1e6:,.0f} MB",
        f"{segment['compile_s']:.0f} s",
        ", ".join(foreign) or "none",
    ]
    return f"| {' | '.join(map(str, cells))} |"


def main() -> None:
    """Plans and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("devices", nargs="+", help="such as h100 v5e")
    parser.add_argument("--only", nargs="*", default=[], help="malonaldehyde, silicon, aspirin")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        aspirin = Path(folder) / "aspirin.yaml"
        aspirin.write_text(ASPIRIN)
        configs = {name: ROOT / f"experiments/{name}/config.yaml" for name in ("malonaldehyde", "silicon")}
        for device in arguments.devices:
            for name, config in (configs | {"aspirin": aspirin}).items():
                if not arguments.only or name in arguments.only:
                    print(row(name, device, plan(config, device)), flush=True)


if __name__ == "__main__":
    main()
