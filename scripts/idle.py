"""How much of the exploration a device has nothing to do, inline and pooled, with labels that take long.

    python scripts/idle.py --seconds 10 --workers 2 --labels 34

Malonaldehyde at 500 K with GFN2-xTB labels that take `--seconds` each, calculated by so many workers; ten labels come
first, the rest while exploring. A device is idle while the program waits for a label, and while the host writes and
decides between two segments. The last line is the verdict, the exit status is 0 where the pooled run's device is idle
for at most 5 % of the time.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated

from jaxal.core.registry import register
from jaxal.core.units import Unit
from jaxal.label.methods.tblite import tblite
from jaxal.label.task import Backend, Result, Task

CHILD = "import idle; from jaxal.cli.main import main; raise SystemExit(main())"
STRUCTURE = Path(__file__).parent.parent / "experiments" / "malonaldehyde" / "malonaldehyde.xyz"
CONFIG = """
system: {file: STRUCTURE}
potential: {cutoff: 4.5, channels: 32, l_max: 2, layers: 2}
explore: {temperature: 500, walkers: 8}
gate: {target_error: 0.2, every: 20}
label: {name: delayed, seconds: SECONDS, mode: MODE, workers: WORKERS}
train: {steps: 50, final_steps: 10, learning_rate: 0.01}
stop: {labels: LABELS}
"""


@register("labeler")
def delayed(*, seconds: Annotated[float, Unit("s", 0)]) -> Backend:
    """GFN2-xTB that takes at least so many seconds."""
    inner = tblite()

    def calculate(task: Task) -> Result:
        began = time.perf_counter()
        result = inner.calculate(task)
        time.sleep(max(0.0, began + seconds - time.perf_counter()))
        return result._replace(seconds=time.perf_counter() - began)

    return Backend(calculate, inner.check, inner.method, inner.version)


def summary(folder: Path, mode: str, arguments: argparse.Namespace) -> dict:
    """The summary of the report of a run."""
    text = CONFIG.replace("STRUCTURE", json.dumps(str(STRUCTURE))).replace("MODE", mode)
    for name in ("seconds", "workers", "labels"):
        text = text.replace(name.upper(), str(getattr(arguments, name)))
    config = folder / f"{mode}.yaml"
    config.write_text(text)
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-c", CHILD, "run", str(config), "--dir", str(folder / mode)]
    subprocess.run(command, check=True, env=os.environ | {"PYTHONPATH": path}, stderr=subprocess.DEVNULL)
    return json.loads((folder / mode / "report.json").read_text())["summary"]


def main() -> int:
    """Runs both and says how idle they were."""
    words = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    words.add_argument("--seconds", type=float, default=10.0, help="of a label")
    words.add_argument("--workers", type=int, default=2)
    words.add_argument("--labels", type=int, default=34, help="in all, ten of them before the dynamics")
    arguments = words.parse_args()
    summaries = {}
    with tempfile.TemporaryDirectory(prefix="jaxal-idle-") as folder:
        for mode in ("inline", "pooled"):
            summaries[mode] = summary(Path(folder), mode, arguments)
            idle, workers = (summaries[mode][name] for name in ("device_idle", "workers_idle"))
            beside = "" if workers is None else f", workers idle {100 * workers:.1f} %"
            said = f"{mode}: device idle {100 * idle:.1f} %{beside}, {summaries[mode]['labels']} labels while exploring"
            print(f"{said}, {summaries[mode]['ps']:.2f} ps of dynamics", flush=True)
    idle = {mode: 100 * summaries[mode]["device_idle"] for mode in summaries}
    good = idle["pooled"] <= 5.0
    print(f"{'PASSED' if good else 'FAILED'}: device idle {idle['pooled']:.1f} % pooled, {idle['inline']:.1f} % inline")
    return 0 if good else 1


if __name__ == "__main__":
    raise SystemExit(main())
