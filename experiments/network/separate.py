"""Each system of the network by itself, with as many labels in all: python experiments/network/separate.py FOLDER [RUN]

Every complex and molecule gets a quarter of the labels of config.yaml, and all else as it is there. Runs are in
FOLDER/NAME; finished ones are left as they are, interrupted ones gone on with. Prints their errors on the test frames,
beside those of RUN, a run of all in one.
"""

import json
import sys
from pathlib import Path

import yaml

import jaxal

HERE = Path(__file__).parent
NAMES = ("identity", "exchange", "chloromethane", "fluoromethane")


def written(name: str, folder: Path) -> Path:
    """The configuration of one system."""
    whole = yaml.safe_load((HERE / "config.yaml").read_text())
    system = whole.pop("systems")[name]
    for field in ("file", "validate"):
        system[field] = str((HERE / system[field]).resolve())
    whole["systems"] = {name: system}
    whole["stop"]["labels"] //= len(NAMES)
    whole["label"]["initial"] //= len(NAMES)
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(whole, sort_keys=False))
    return path


def errors(run: Path, name: str) -> str:
    """Root mean square errors of a run on the test frames of a system."""
    outcome = json.loads((run / "validate.json").read_text())
    each = outcome["systems"].get(name, outcome["errors"])  # a run of one system has no others to tell it from
    return f"{1e3 * each['force']['rmse']:5.1f} meV/Å, {1e3 * each['energy']['rmse']:5.2f} meV/atom"


def main(folder: Path, together: Path | None) -> None:
    """Runs what has not been run, and prints."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in NAMES:
        run = folder / name
        if run.exists():
            jaxal.resume(run)
        else:
            jaxal.start(jaxal.load_config(written(name, folder)), run)
        beside = f"; together: {errors(together, name)}" if together else ""
        print(f"{name:14} alone: {errors(run, name)}{beside}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) > 2 else None)
