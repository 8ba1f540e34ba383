"""Commands of jaxal: `here`, in this process, which has paid for its imports, and `alone`, in a process of its own."""

import contextlib
import io
import subprocess
import sys
from pathlib import Path

import jax

from jaxal.cli.main import main
from jaxal.core import plugins, registry

SMALL = Path(__file__).parent / "small_potential.py"  # registers the potential `bonds`


def here(*arguments: object, folder: Path | None = None) -> subprocess.CompletedProcess:
    """Status and output of a command in this process, whose precision and parts are afterwards what they were."""
    double = jax.config.read("jax_enable_x64")
    out, err = io.StringIO(), io.StringIO()
    with contextlib.chdir(folder or "."), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status = main([str(argument) for argument in arguments])
        except SystemExit as end:  # of argparse
            status = end.code if isinstance(end.code, int) else 1
        finally:
            jax.config.update("jax_enable_x64", double)
            _forget_files()
    return subprocess.CompletedProcess("jaxal", status, out.getvalue(), err.getvalue())


def alone(*arguments: object, folder: Path | None = None) -> subprocess.CompletedProcess:
    """Status and output of a command in a process of its own."""
    command = [sys.executable, "-m", "jaxal", *map(str, arguments)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=600)


def _forget_files() -> None:
    """Takes parts from files, such as `SMALL`, out of the registry again."""
    plugins._files.clear()
    for parts in registry._table.values():
        for name in [name for name, part in parts.items() if part.__module__.startswith("jaxal_part_")]:
            del parts[name]
