"""README and the pages under docs say what is so: the example runs, commands exist, links lead somewhere."""

import re
import shlex
import shutil
from pathlib import Path
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from model_example import MOLECULE, tiny_model
from structures import plain

from jaxal.acquire import score
from jaxal.bench.cases import CASES
from jaxal.cli.main import parser
from jaxal.config import schema
from jaxal.config.loading import load, parse
from jaxal.config.schema import Bench
from jaxal.config.simulation import Simulation
from jaxal.core import registry

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def test_the_python_example_runs(tmp_path, monkeypatch, capsys):
    (code,) = blocks(README, "python")
    shutil.copy(MOLECULE, tmp_path)
    tiny_model(tmp_path / "model.npz")
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(compile(code, "README.md", "exec"), names)
    assert np.isfinite(names["energy"]) and names["forces"].shape == (9, 3)
    assert names["spread"].shape == (9,) and names["error"] == pytest.approx(1.5 * names["spread"].max())
    assert re.fullmatch(r"-?\d+\.\d{3} eV, largest force error at most \d+\.\d\d eV/Å\n", capsys.readouterr().out)


def commands() -> list[list[str]]:
    """The arguments of every `jaxal ...` line in the shell blocks of all pages."""
    calls = []
    for page in PAGES:
        for block in blocks(page.read_text(), "sh"):
            for line in block.splitlines():
                calls += [
                    shlex.split(part, comments=True)[1:]
                    for part in line.split("&&")
                    if re.match(r"\S*\bjaxal\b ", part.strip())
                ]
    return calls


def test_commands_in_the_text_are_right(monkeypatch):
    monkeypatch.chdir(ROOT)
    assert len(commands()) >= 2
    for words in commands():
        arguments = parser().parse_args(words)
        if words[0] == "bench":
            assert set(arguments.cases) <= set(CASES)
            parse({}, cls=Bench, overrides=arguments.set)
        elif words[0] == "contest":
            assert not arguments.config.parent.parts or arguments.config.is_file()
        elif words[0] in ("dynamics", "free-energy", "radial-distribution", "diffusion", "power-spectrum"):
            assert parse({}, None, Simulation, arguments.overrides).length > 0
        elif hasattr(arguments, "config") and (arguments.config.parent.parts or arguments.config.is_file()):
            load(arguments.config, arguments.overrides)


def test_every_command_is_in_the_table():
    shown = set(re.findall(r"^\| `jaxal ([\w-]+)", README, re.MULTILINE))
    (choices,) = (action.choices for action in parser()._actions if action.choices)
    assert shown == set(choices)


def test_the_molecule_of_your_own_loads(tmp_path):
    text, several = blocks(README, "yaml")
    shutil.copy(MOLECULE, tmp_path / "ethanol.xyz")
    (tmp_path / "config.yaml").write_text(text)
    assert load(tmp_path / "config.yaml").explore.part["temperature"] == 500
    for name in ("complex", "cl", "ch3cl"):
        shutil.copy(MOLECULE, tmp_path / f"{name}.xyz")
    (tmp_path / "several.yaml").write_text(several)
    assert list(load(tmp_path / "several.yaml").systems) == ["complex", "chloride", "chloromethane"]


def test_there_is_one_line_to_run_and_one_to_test():
    for mark, ending in (("run", "jaxal run experiments/malonaldehyde/config.yaml"), ("tests", "-m pytest -n 2")):
        (line,) = re.findall(rf"^<!-- {mark} -->\n```sh\n([^\n]+)\n```$", README, re.MULTILINE)
        assert line.startswith("python3 -m venv") and line.endswith(ending)
    assert "<!-- tests -->" in (ROOT / "scripts" / "check.sh").read_text()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_paths_lead_somewhere(page):
    text = page.read_text()
    for target in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (page.parent / target).exists(), target
    for target in re.findall(r"`((?:jaxal|tests|docs|scripts)/[\w./]+)`", text):
        assert (ROOT / target).exists(), target


def test_sections_of_a_configuration_are_all_explained():
    text = (ROOT / "docs" / "configuration.md").read_text()
    for cls in (schema.Config, schema.Offline):
        for name in cls.__dataclass_fields__:
            assert f"`{name}`" in text, name


def test_the_example_part_keeps_the_contract():
    """The score of docs/add_a_part.md does what the page says."""
    code = blocks((ROOT / "docs" / "add_a_part.md").read_text(), "python")[0]
    names = {**vars(score), "Annotated": Annotated, "Unit": schema.Unit}
    try:
        exec(compile(code, "add_a_part.md", "exec"), names)
        new = registry.get("score", "softened_force_spread")
    finally:
        registry._table["score"].pop("softened_force_spread", None)
    rng = np.random.default_rng(0)
    prediction = score.Prediction(
        jnp.zeros(4), jnp.asarray(rng.normal(size=(4, 5, 3)), jnp.float32), jnp.zeros((4, 3, 3)), jnp.zeros((5, 2))
    )
    structure = plain(jnp.zeros((5, 3)), jnp.asarray([0, 0, 1, -1, -1]), jnp.zeros((3, 3)), jnp.int32(0), jnp.int32(0))
    low, high = (float(f(prediction, structure)) for f in (score.mean_force_spread, score.max_force_spread))
    assert low <= float(new(prediction, structure, power=8.0)) <= high
    slope = jax.grad(lambda force: new(prediction._replace(force=force), structure))(jnp.zeros((4, 5, 3)))
    assert np.all(np.isfinite(slope))
