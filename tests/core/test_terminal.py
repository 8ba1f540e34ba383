"""Machines as users have them: terminals of few letters, closed pipes, full disks, no device, no home."""

import io
import os
import subprocess
import sys
import unicodedata
from pathlib import Path

import jax
import pytest
from ase.build import molecule
from ase.io import write

from jaxal.cli.main import main
from jaxal.core import devices, terminal
from jaxal.core.types import InputError
from jaxal.report.display import Status, display

CONFIG = "system: {file: water.xyz}\nexplore: {temperature: 300 K}\nlabel: {name: morse}\n"
METRICS = '{"kind": "phase", "wall": 1.0, "phase": "explore", "why": ""}\n'


@pytest.fixture
def folder(tmp_path: Path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write("water.xyz", molecule("H2O"))
    Path("config.yaml").write_text(CONFIG)
    Path("versions.json").write_text("{}")
    Path("metrics.jsonl").write_text(METRICS)
    return tmp_path


def printed(monkeypatch, encoding: str, *arguments: str) -> tuple[int, str, str]:
    """Status, standard output and error of a command whose terminal has this encoding."""
    streams = [io.TextIOWrapper(io.BytesIO(), encoding=encoding) for _ in range(2)]
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", streams[0])
        patch.setattr(sys, "stderr", streams[1])
        status = main(arguments)
    for stream in streams:
        stream.flush()
    out, err = (stream.buffer.getvalue().decode(encoding) for stream in streams)
    return status, out, err


def test_every_letter_has_a_plain_form():
    terminal.prepare()
    text = "eV/Å → ±1×10³ café │━│ “x” Å naïve 5 µm −2 … 漢"
    assert text.encode("ascii", terminal.ERRORS).decode() == 'eV/A -> +/-1x103 cafe |-| "x" A naive 5 um -2 ... ?'
    assert text.encode("latin-1", terminal.ERRORS).decode("latin-1").startswith("eV/Å -> ±1×10³ café")
    everything = "".join(map(chr, range(0xD800))) + "".join(map(chr, range(0xDC80, 0x11000)))
    everything.encode("ascii", terminal.ERRORS)
    assert all(len(unicodedata.normalize("NFC", letter)) == 1 for letter in terminal.READABLE)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("list", "gate"), "eV/A"),
        (("check", "config.yaml"), "implausible: 2.0  # eV/A"),
        (("status", "."), "explore"),
    ],
)
def test_every_command_prints(folder, monkeypatch, encoding, arguments, line):
    status, out, err = printed(monkeypatch, encoding, *arguments)
    assert (status, err) == (0, "")
    assert (line if encoding == "ascii" else line.replace("eV/A", "eV/Å")) in out


def test_an_error_is_a_line_there_too(folder, monkeypatch):
    status, out, err = printed(monkeypatch, "ascii", "check", "config.yaml", "gate.implausible=0 eV/Å")
    assert (status, out) == (2, "") and err.count("\n") == 1 and "give more than 0 eV/A" in err
    Path("größe.yaml").write_text("seed: [1")
    assert "groe.yaml" in printed(monkeypatch, "ascii", "check", "größe.yaml")[2].replace("?", "")


@pytest.mark.parametrize(
    "arguments", [("--help",), ("run", "--help"), ("bench", "--help"), ("store", "list", "--help")]
)
def test_help_prints(monkeypatch, arguments):
    with pytest.raises(SystemExit) as ended:
        printed(monkeypatch, "ascii", *arguments)
    assert ended.value.code == 0


def test_the_display_of_a_run_prints(monkeypatch):
    terminal.prepare()
    file = io.TextIOWrapper(io.BytesIO(), encoding="ascii", errors=terminal.ERRORS)
    with display(file) as show:
        show(Status("explore", 1.0, estimated_error=0.15))
    file.flush()
    assert "estimated 150 meV/A" in file.buffer.getvalue().decode()


def of_a_shell(command: str, folder: Path, **environment: str) -> subprocess.CompletedProcess:
    script = f"{sys.executable} -m jaxal {command}"
    return subprocess.run(
        script, shell=True, cwd=folder, env=os.environ | environment, capture_output=True, text=True, timeout=120
    )


def test_a_full_disk_and_a_closed_output_are_no_tracebacks(folder):
    result = of_a_shell("status . > /dev/full", folder)
    assert result.returncode == 2 and result.stderr.startswith("jaxal: error: ") and result.stderr.count("\n") == 1
    assert "No space left on device" in result.stderr
    assert of_a_shell("status . >&-", folder).stderr == ""
    result = of_a_shell("status nothing 2>&-", folder)
    assert result.returncode == 2 and result.stdout == ""
    assert of_a_shell("status nothing 2> /dev/full", folder).returncode == 2


def test_a_platform_that_is_not_there_is_one_line(folder):
    result = of_a_shell("run config.yaml", folder, JAX_PLATFORMS="cuda", CUDA_VISIBLE_DEVICES="")
    assert result.returncode == 2 and result.stderr.count("\n") == 1, result.stderr
    assert result.stderr.startswith("jaxal: error: JAX_PLATFORMS=cuda: JAX has no device to compute on (")
    assert not (folder / "runs").exists()
    code = "import jaxal; jaxal.Calculator('model.npz')"
    environment = os.environ | {"JAX_PLATFORMS": "nonsense"}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)
    last = result.stderr.splitlines()[-1]
    assert last.startswith("jaxal.core.errors.InputError: JAX_PLATFORMS=nonsense: JAX has no device to compute on (")


@pytest.mark.parametrize("error", [AssertionError(), RuntimeError("Unable to initialize backend 'tpu': no\nlibtpu.so")])
def test_whatever_jax_raises_it_is_one_line(monkeypatch, error):
    def none():
        raise error

    monkeypatch.setattr(jax, "devices", none)
    with pytest.raises(InputError, match="JAX has no device to compute on") as caught:
        devices.ready()
    assert "\n" not in str(caught.value)
