"""The command line: `jaxal new`, `run`, `resume`, `train`, `validate`, `report`, `status`, `label`, `store`, `list`,
`check`, `plan`, `bench`, `contest`.

Only what a command needs is imported, inside it: `jaxal --help` answers at once. A mistake of the user ends
with one line on standard error and status 2. A run that Ctrl-C or SIGTERM ends keeps what it has, says how to go
on, and ends with status 0; other commands end at once with status 130.
"""

import argparse
import errno
import inspect
import json
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from jaxal.bench import arguments as bench_arguments
from jaxal.cli import label_command, new_command, observe_command, store_command, use_command
from jaxal.contest import command as contest_command
from jaxal.core import terminal
from jaxal.core.errors import InputError, InputWarning
from jaxal.label.task import LabelError
from jaxal.plan import command as plan_command

DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)  # nothing a program can do about
LONGEST = 2000  # characters of an error, which may repeat what it was given
OVERRIDES = "fields that replace those of the file, such as explore.temperature=300 or 'stop.quiet=2 ps'"


def main(command_line: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit status: 0, 2 for a mistake of the user, 130 where Ctrl-C cut it off."""
    terminal.prepare()
    # without a home that can be written to it works in a folder of the moment, and nobody needs to know
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    # jax-md sums in 64 bits where there are any and says so where there are none
    warnings.filterwarnings("ignore", message="Explicitly requested dtype float64")
    # XLA complains of processor features it has itself made up whenever it loads a kept program, kilobytes each time;
    # where nobody reads them off a pipe the program stands still. 1 is what JAX leaves behind for commands it starts.
    if os.environ.get("TF_CPP_MIN_LOG_LEVEL", "1") == "1":
        os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    words = parser()
    arguments, rest = words.parse_known_args(command_line)
    if rest and hasattr(arguments, "overrides") and all("=" in word and word[0] != "-" for word in rest):
        arguments.overrides = [*arguments.overrides, *rest]  # argparse leaves those behind that follow an option
    elif rest:
        words.error(f"unrecognized arguments: {' '.join(rest)}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("always", InputWarning)
            warnings.showwarning = _warned
            if arguments.command not in (_run, _resume, plan_command.run):  # whose devices come first
                _import_parts(arguments)
            arguments.command(arguments)
        terminal.flush()
    except KeyboardInterrupt:  # not in a run at work, which comes to an end in order
        terminal.complain(f"\njaxal: interrupted{_how_to_go_on(arguments)}")
        return 130
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        terminal.abandon(sys.stdout)
        return 0
    except Exception as error:
        reason = _reason(error, arguments)
        if reason is None:
            if getattr(arguments, "distributed", False):
                traceback.print_exc()
                os._exit(1)  # at once: an ordinary exit waits for the other processes, which wait for this one
            raise
        if isinstance(error, OSError):
            terminal.abandon(sys.stdout)  # what could not be written there cannot be at the end
        terminal.complain(f"jaxal: error: {reason}")
        return 2
    return 0


def _warned(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
    """A warning as one line; where in the program it was given is of no use to who gave the input."""
    name = "warning" if issubclass(category, InputWarning) else category.__name__
    terminal.complain(f"jaxal: {name}: {' '.join(str(message).split())[:LONGEST]}")


def _reason(error: Exception, arguments: argparse.Namespace) -> str | None:
    """A mistake of the user's, or what the machine refuses, in one line; None for a mistake of the program's."""
    if isinstance(error, OSError) and (error.filename or error.errno in DISK):
        return f"{error}{_how_to_go_on(arguments)}"
    if isinstance(error, LabelError) and getattr(arguments, "distributed", False):  # of one process
        return None
    if isinstance(error, InputError):
        return " ".join(str(error).split())[:LONGEST]
    if "jax" not in sys.modules:
        return None
    from jaxal.core.devices import no_device

    return no_device()


def _import_parts(arguments: argparse.Namespace) -> None:
    """The files with parts of the user's own."""
    for path in getattr(arguments, "part", ()):
        from jaxal.core.discovery import import_file

        import_file(path)


def parser() -> argparse.ArgumentParser:
    """The commands and their arguments."""
    top = argparse.ArgumentParser(prog="jaxal", description="On-the-fly learning of reactive interatomic potentials.")
    commands = top.add_subparsers(required=True, metavar="COMMAND")

    new = commands.add_parser("new", help="write a configuration for a structure")
    new_command.add(new)
    run = commands.add_parser("run", help="learn a potential on the fly, from a structure and a method")
    _add_config(run)
    run.add_argument("--dir", type=Path, help="run folder, new or empty but for a label store (default: runs/NAME)")
    _add_distributed(run)
    run.set_defaults(command=_run)

    resume = commands.add_parser("resume", help="continue a run that was stopped, bit for bit")
    resume.add_argument("dir", metavar="DIR", type=Path, help="its run folder")
    resume.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="fields to change, such as stop.labels=500")
    _add_distributed(resume)
    resume.set_defaults(command=_resume)

    train = commands.add_parser("train", help="fit a potential to labeled structures")
    _add_config(train)
    train.add_argument("--dir", type=Path, help="folder for the results, must be new or empty (default: runs/NAME)")
    train.set_defaults(command=_train)

    validate = commands.add_parser("validate", help="compare a potential with labeled structures")
    validate.add_argument("run", metavar="RUN", type=Path, help="run folder or model file")
    validate.add_argument(
        "--data", type=Path, required=True, help="structures with energies and forces, any ASE format"
    )
    validate.add_argument("--json", action="store_true", help="print JSON")
    validate.set_defaults(command=_validate)

    report = commands.add_parser("report", help="write the report of a run again")
    report.add_argument("dir", metavar="DIR", type=Path, help="run folder")
    report.set_defaults(command=_report)

    status = commands.add_parser("status", help="show how a run stands, at work or not")
    status.add_argument("dir", metavar="DIR", type=Path, help="run folder")
    status.add_argument("--json", action="store_true", help="print JSON")
    status.set_defaults(command=_status)
    label = commands.add_parser("label", help="try the method of a configuration, or label the structures of a file")
    _add_config(label)
    label_command.add(label)
    store_command.add(commands.add_parser("store", help="look into label stores; import, export and merge labels"))

    parts = commands.add_parser("list", help="show the registered parts and their options")
    parts.add_argument("kind", nargs="?", help="only this kind of part, such as explorer")
    parts.set_defaults(command=_list)

    check = commands.add_parser("check", help="check a configuration and print it with all defaults")
    _add_config(check)
    check.set_defaults(command=_check)
    plan = commands.add_parser("plan", help="what a run would need on a device, which need not be here")
    _add_config(plan)
    plan_command.add(plan)
    contest = commands.add_parser("contest", help="strategies of choosing labels against each other, over seeds")
    _add_config(contest)
    contest_command.add(contest)
    used = use_command.add(commands) + observe_command.add(commands)
    bench = commands.add_parser("bench", help="measure forces, dynamics, the program and training on this machine")
    bench_arguments.add(bench)
    for command in (new, run, resume, train, validate, report, label, parts, check, plan, contest, bench, *used):
        part = "Python file that registers parts of your own; may be given several times"
        command.add_argument("--part", type=Path, action="append", default=[], metavar="FILE", help=part)
    return top


def _add_distributed(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--distributed", action="store_true", help="one of several processes, all started with this same command"
    )


def _add_config(command: argparse.ArgumentParser) -> None:
    command.add_argument("config", metavar="CONFIG", type=Path, help="YAML file")
    command.add_argument("overrides", metavar="key.sub=value", nargs="*", help=OVERRIDES)


def _run(arguments: argparse.Namespace) -> None:
    from_first = _processes(arguments)
    _import_parts(arguments)
    from jaxal.config import yaml12
    from jaxal.config.loading import FILE_NAME, load, parse
    from jaxal.config.writing import dump

    config = parse(yaml12.parse(from_first(lambda: dump(load(arguments.config, arguments.overrides))), FILE_NAME), None)
    arguments.dir = Path(from_first(lambda: str(_new_folder(arguments))))
    from jaxal.run import driver

    _say_if_cut(driver.start(config, arguments.dir), arguments)


def _resume(arguments: argparse.Namespace) -> None:
    _processes(arguments, _devices_of(arguments.dir))(lambda: _old_folder(arguments.dir))
    _import_parts(arguments)
    from jaxal.run import driver

    _say_if_cut(driver.resume(arguments.dir, arguments.overrides), arguments)


def _say_if_cut(ended: bool, arguments: argparse.Namespace) -> None:
    if not ended:
        terminal.complain(f"jaxal: ended as told{_how_to_go_on(arguments)}")


def _devices_of(folder: Path) -> int:
    """How many devices a run had; 1 where its configuration cannot be read, which is told of later."""
    from jaxal.config import yaml12
    from jaxal.config.loading import FILE_NAME

    try:
        had = yaml12.parse((folder / FILE_NAME).read_text(), FILE_NAME)["devices"]
    except (OSError, UnicodeDecodeError, InputError, KeyError, TypeError):
        return 1
    return had if isinstance(had, int) else 1


def _processes(arguments: argparse.Namespace, least: int = 1) -> Callable:
    """Joins the other processes where there are any. Returns how to do something in the first of them alone.

    It goes before everything else: importing jax-md already computes something.
    """
    from jaxal.core import compilation, devices

    if arguments.distributed:
        devices.join()
    devices.prepare(least)
    compilation.keep()
    return devices.from_first


def _old_folder(folder: Path) -> None:
    """Raises InputError where no run is."""
    from jaxal.config.loading import FILE_NAME

    if not (folder / FILE_NAME).is_file():
        raise InputError(f"{folder}: not a run folder, it holds no {FILE_NAME}; `jaxal run CONFIG` starts a run")


def _train(arguments: argparse.Namespace) -> None:
    from jaxal.config.loading import load
    from jaxal.config.schema import Offline

    config = load(arguments.config, arguments.overrides, Offline)
    arguments.dir = _new_folder(arguments)
    from jaxal.core import compilation
    from jaxal.run import offline

    compilation.keep()
    offline.train(config, arguments.dir)


def _validate(arguments: argparse.Namespace) -> None:
    from jaxal.core import compilation
    from jaxal.validate import command

    compilation.keep()
    validation = command.validate(arguments.run, arguments.data)
    print(json.dumps(command.to_json(validation), indent=1) if arguments.json else command.format(validation))


def _report(arguments: argparse.Namespace) -> None:
    from jaxal.config.loading import FILE_NAME

    if not (arguments.dir / FILE_NAME).is_file():
        raise InputError(f"{arguments.dir}: not a run folder, it holds no {FILE_NAME}; give the folder of a run")
    from jaxal.report import page

    print(page.write(arguments.dir))


def _status(arguments: argparse.Namespace) -> None:
    from jaxal.report import status

    record = status.gather(arguments.dir)
    print(json.dumps(record, indent=1) if arguments.json else status.text(record))


def _list(arguments: argparse.Namespace) -> None:
    from jaxal.config.annotations import describe, unit_of
    from jaxal.config.yaml12 import inline
    from jaxal.core import registry
    from jaxal.core.discovery import import_parts

    if arguments.kind is not None and arguments.kind not in registry.KINDS:
        raise InputError(f"list: unknown kind {arguments.kind!r}; kinds are {', '.join(registry.KINDS)}")
    import_parts(*([arguments.kind] if arguments.kind else []))
    for kind in [arguments.kind] if arguments.kind else registry.KINDS:
        for name in registry.names(kind):
            print(f"{kind} {name}\n  {registry.description(kind, name)}")
            for option in registry.options(kind, name):
                required = option.default is inspect.Parameter.empty
                value = "required" if required else inline(_plain(option.default))
                what = unit_of(option.annotation) or describe(option.annotation)
                print(f"    {option.name:<20} {value:<16} {what}")
            print()
        if arguments.kind and not registry.names(kind):
            print(f"no {kind} is registered; docs/add_a_part.md says how one is added")


def _plain(default: object) -> object:
    return list(default) if isinstance(default, tuple) else default


def _check(arguments: argparse.Namespace) -> None:
    from jaxal.config.loading import load
    from jaxal.config.writing import dump

    config = load(arguments.config, arguments.overrides)
    from jaxal.config.check import check

    for warning in check(config):
        print(f"jaxal: warning: {warning}", file=sys.stderr)
    print(dump(config), end="")


def _new_folder(arguments: argparse.Namespace) -> Path:
    """The folder for the results. Raises InputError where it holds something."""
    from jaxal.config.loading import FILE_NAME

    config = arguments.config.resolve()
    folder = arguments.dir or Path("runs") / (config.parent.name if config.name == FILE_NAME else config.stem)
    if arguments.command is _run:
        from jaxal.run.folder import refuse_used

        refuse_used(folder)
    elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder}: is not an empty folder; give a new one with --dir")
    return folder


def _how_to_go_on(arguments: argparse.Namespace) -> str:
    """What to do where a run was ended, if there is something to continue."""
    folder = getattr(arguments, "dir", None)
    if arguments.command not in (_run, _resume) or folder is None or not (folder / "config.yaml").exists():
        return ""
    return f"; `jaxal resume {folder}` continues"


if __name__ == "__main__":
    sys.exit(main())
