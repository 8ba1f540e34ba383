"""`jaxal store`: what a label store holds, what it cost, and labels in and out of it.

Nothing here loads JAX. A store is given as its file or as the folder of a run.
"""

import argparse
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxal.report.metrics import STORE, store_of

if TYPE_CHECKING:
    from jaxal.label.store.transfer import Added

WAIT = 20.0  # s for another process that keeps the store locked; a run does so for milliseconds
STATUSES = ("done", "rejected", "failed")
SHOWN = 60  # characters of a method or a reason in a table


def add(store: argparse.ArgumentParser) -> None:
    """The actions of the command and their arguments."""
    actions = store.add_subparsers(required=True, metavar="ACTION")

    listing = _action(actions, "list", "show the rows of a store and how many there are", _list)
    listing.add_argument("--status", choices=STATUSES, help="only these")
    listing.add_argument("--limit", metavar="N", type=_count, help="only the last N")
    listing.add_argument("--json", action="store_true", help="print JSON")

    cost = _action(actions, "cost", "sum up the wall time of the calculations", _cost)
    cost.add_argument("--json", action="store_true", help="print JSON")

    export = _action(actions, "export", "write the labels to a file that ASE reads", _export)
    export.add_argument("file", metavar="FILE", type=Path, help="extended XYZ (.xyz, .extxyz, also .gz) or .db")
    export.add_argument("--status", choices=STATUSES, default="done", help="of the labels (default: done)")
    export.add_argument("--method", metavar="TEXT", help="of the labels, as in `list --json` (default: all)")
    export.add_argument("--force", action="store_true", help="replace the file if it is there")

    labeled = _action(actions, "import", "add labeled structures of a file, any format ASE reads", _import)
    labeled.add_argument("file", metavar="FILE", type=Path, help="structures with energies and forces")
    labeled.add_argument("--method", metavar="TEXT", help="as in `list --json` (default: each frame's own)")
    labeled.add_argument("--version", metavar="TEXT", help="of the code, as there (default: each frame's own)")
    labeled.add_argument("--charge", type=int, help="e, where a frame does not say it (default: 0)")
    labeled.add_argument("--spin", type=int, help="unpaired electrons, likewise (default: 0, unknown if odd)")

    merge = _action(actions, "merge", "add what a store lacks of other stores, also of runs at work", _merge)
    merge.add_argument("sources", metavar="SOURCE", type=Path, nargs="+", help="stores or run folders, only read")


def _action(actions: Any, name: str, text: str, command: Any) -> argparse.ArgumentParser:
    action = actions.add_parser(name, help=text)
    action.add_argument("path", metavar="PATH", type=Path, help=f"label store, or run folder with a {STORE}")
    action.set_defaults(command=command)
    return action


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError
    return number


_count.__name__ = "number, 1 or more"


def _store(path: Path) -> Path:
    """The file of a store, from the file or from its folder."""
    return store_of(path) if path.is_dir() else path


def _list(arguments: argparse.Namespace) -> None:
    from jaxal.label.store import summary

    listing = summary.listed(_store(arguments.path), arguments.status, arguments.limit, WAIT)
    if arguments.json:
        print(json.dumps(listing, indent=1))
        return
    head = ("row", "formula", "charge", "spin", "status", "energy, eV", "s", "attempt", "created", "host", "method")
    rows = [
        (
            *(row["row"], row["formula"], f"{row['charge']:+d}" if row["charge"] else "0", row["spin"], row["status"]),
            "–" if row["energy"] is None or row["status"] == "failed" else f"{row['energy']:.6f}",
            *(f"{row['seconds']:.2f}", row["attempt"], row["created"][:19], row["host"], _short(row["method"])),
            _short(row["reason"]),
        )
        for row in listing["rows"]
    ]
    if rows:
        print(_table((*head, "reason"), rows))
    print(", ".join(f"{number} {status}" for status, number in listing["counts"].items()))


def _cost(arguments: argparse.Namespace) -> None:
    from jaxal.label.store import summary

    costs = summary.cost(_store(arguments.path), WAIT)
    if arguments.json:
        print(json.dumps(costs, indent=1))
        return
    rows = []
    for group in costs["methods"]:
        rows.append((_short(group["method"]), group["status"], "all", *_times(group)))
        rows += [("", "", entry["atoms"], *_times(entry)) for entry in group["atoms"]]
    if rows:
        print(_table(("method", "status", "atoms", "labels", "total, h", "mean, s", "median, s", "largest, s"), rows))
    print(f"{costs['total']['number']} labels, {costs['total']['hours']:.4g} h of wall time")


def _times(group: dict[str, Any]) -> tuple[Any, ...]:
    return group["number"], f"{group['hours']:.4g}", *(f"{group[name]:.3g}" for name in ("mean", "median", "max"))


def _export(arguments: argparse.Namespace) -> None:
    from jaxal.label.store import transfer

    count = transfer.export(
        _store(arguments.path), arguments.file, arguments.status, arguments.method, arguments.force, WAIT
    )
    print(f"{arguments.file}: {count} labels")


def _import(arguments: argparse.Namespace) -> None:
    from jaxal.label.store import transfer

    path = _store(arguments.path)
    added = transfer.import_labels(
        path, arguments.file, arguments.method, arguments.version, arguments.charge, arguments.spin, WAIT
    )
    print(f"{path}: {added.new} new labels, {added.better} in place of failed ones, {_known(added)}")


def _merge(arguments: argparse.Namespace) -> None:
    from jaxal.label.store import transfer

    path = _store(arguments.path)
    added = transfer.merge(path, [_store(source) for source in arguments.sources], WAIT)
    print(f"{path}: {added.new} new labels, {added.better} in place of lesser ones, {_known(added)}")


def _known(added: "Added") -> str:
    """How many labels a store had, and what of those that were offered it does not keep."""
    lost = f", {added.other} of them with other masses, fixed atoms or info, which are not kept" if added.other else ""
    return f"{added.known} known before{lost}"


def _short(text: str) -> str:
    return text if len(text) <= SHOWN else text[: SHOWN - 1] + "…"


def _table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Columns as wide as their widest cell; numbers to the right."""
    cells = [[str(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(head, *cells, strict=True)]
    right = [all(cell.strip("+-–.0123456789e") == "" for cell in column) for column in zip(*cells, strict=True)]
    lines = []
    for row in [list(head), *cells]:
        columns = zip(row, widths, right, strict=True)
        lines.append("  ".join(cell.rjust(width) if number else cell.ljust(width) for cell, width, number in columns))
    return "\n".join(line.rstrip() for line in lines)
