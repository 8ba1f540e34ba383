"""Configurations: what is written is what is meant, and every mistake is one clear line before anything runs."""

import dataclasses
import math
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, get_args

import pytest

from jaxal.config import schema, yaml12
from jaxal.config.annotations import describe, unit_of
from jaxal.config.loading import FILE_NAME, _convert, load, parse
from jaxal.config.schema import Config, Offline, Part
from jaxal.config.writing import dump, resolved
from jaxal.core import registry
from jaxal.core.discovery import import_parts
from jaxal.core.types import InputError
from jaxal.core.units import GPA, KCAL_PER_MOL, Unit

WATER = "3\n\nO 0 0 0.12\nH 0 0.76 -0.48\nH 0 -0.76 -0.48\n"
SECTIONS = """
system: {file: water.xyz}
explore: {name: nvt_langevin, temperature: 500, timestep: 0.5, friction: 0.01, walkers: 8}   # K, fs, 1/fs
gate: {name: conformal, target_error: 0.15, implausible: 2.0, every: 10}
label: {name: tblite, method: GFN2-xTB, workers: 2}
train: {steps: 200, batch: 8, learning_rate: 2.0e-3}
stop: {labels: 300, quiet: 5.0}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "water.xyz").write_text(WATER)
    (tmp_path / "config.yaml").write_text(SECTIONS)
    return tmp_path


def write(folder: Path, text: str) -> Path:
    path = folder / "other.yaml"
    path.write_text(text)
    return path


def complaint(folder: Path, text: str, *overrides: str, cls: type = Config) -> str:
    """The one line that a configuration is refused with, without the file's name."""
    path = write(folder, text)
    with pytest.raises(InputError) as caught:
        load(path, overrides, cls)
    message = str(caught.value)
    assert "\n" not in message
    return message.removeprefix(f"{path}: ")


def test_the_design_page_example_loads(folder):
    config = load(folder / "config.yaml")
    assert config.system == schema.System(file=(folder / "water.xyz").resolve())
    assert config.explore.part.name == "nvt_langevin" and config.explore.part.kind == "explorer"
    assert config.explore.part["temperature"] == 500.0 and isinstance(config.explore.part["temperature"], float)
    assert config.explore.walkers == 8 and config.label.workers == 2
    assert (config.stop.labels, config.stop.quiet, config.train.steps) == (300, 5.0, 200)
    # What is not written has its default, down to the options of parts that are not mentioned.
    assert config.committee == schema.Committee() and config.output == schema.Output()
    defaults = {option.name: option.default for option in registry.options("potential", "equivariant")}
    assert dict(config.potential.options) == defaults
    assert (config.seed, config.precision) == (0, "float32")


def test_a_configuration_cannot_be_changed(folder):
    config = load(folder / "config.yaml")
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.seed = 1  # pyright: ignore[reportAttributeAccessIssue]


def test_bind_gives_the_factory_its_options(folder):
    part = load(folder / "config.yaml", ["explore.timestep=0.25"]).explore.part
    bound = part.bind()
    assert bound.func is registry.get("explorer", "nvt_langevin")
    assert bound.keywords == dict(part.options)
    assert bound().timestep == 0.25
    with pytest.raises(KeyError):
        part["walkers"]


@pytest.mark.parametrize(
    ("override", "read", "expected"),
    [
        ("explore.temperature=300 K", lambda c: c.explore.part["temperature"], 300.0),
        ("explore.timestep=0.0005 ps", lambda c: c.explore.part["timestep"], 0.5),
        ("explore.timestep='.5fs'", lambda c: c.explore.part["timestep"], 0.5),
        ("explore.friction=10 1/ps", lambda c: c.explore.part["friction"], 0.01),
        ("gate.implausible=500 meV/Å", lambda c: c.gate.implausible, 0.5),
        ("gate.implausible=500 meV/A", lambda c: c.gate.implausible, 0.5),
        ("stop.quiet=2e3 fs", lambda c: c.stop.quiet, 2.0),
        ("stop.wall=1.5 h", lambda c: c.stop.wall, 5400.0),
        ("stop.time=10 ps", lambda c: c.stop.time, 10.0),
        ("stop.time=", lambda c: c.stop.time, None),
        ("label.timeout=1e3", lambda c: c.label.timeout, 1000.0),
        ("train.huber=0.1", lambda c: c.train.huber, 0.1),
        ("train.learning_rate=1e-3", lambda c: c.train.learning_rate, 1e-3),
        ("train.bootstrap=false", lambda c: c.train.bootstrap, False),
        ("system.supercell=[2, 1, 3]", lambda c: c.system.supercell, (2, 1, 3)),
        ("precision=float64", lambda c: c.precision, "float64"),
        ("seed=010", lambda c: c.seed, 10),
        ("committee={members: 6}", lambda c: c.committee.members, 6),
        ("committee={kind: shared, signs: 2}", lambda c: c.committee.signs, 2),
        ("explore={name: nve, temperature: 100}", lambda c: c.explore.part["temperature"], 100.0),
        (" explore.walkers =3", lambda c: c.explore.walkers, 3),
    ],
)
def test_overrides_and_units(folder, override, read, expected):
    value = read(load(folder / "config.yaml", [override]))
    assert value == pytest.approx(expected) and type(value) is type(expected)


def test_units_of_energy_and_pressure_convert():
    assert _convert("1 kcal/mol", Annotated[float, Unit("eV")], "x", Path()) == pytest.approx(KCAL_PER_MOL)
    assert _convert("1 eV/Å^3", Annotated[float, Unit("GPa")], "x", Path()) == pytest.approx(1 / GPA)


def test_later_overrides_win_and_sections_appear(folder):
    path = write(folder, "system: {file: water.xyz}\n")
    config = load(path, ["stop.labels=50", "stop.labels=60", "train.batch=2"])
    assert (config.stop.labels, config.train.batch) == (60, 2)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "system.file: missing; give a file"),
        ("system:", "system.file: missing; give a file"),
        ("system: {file: none.xyz}", "system.file: there is no file {folder}/none.xyz; paths are relative to the"),
        ("system: {file: 3}", "system.file: 3 does not fit; give a file"),
        ("system: water.xyz", "system: water.xyz does not fit; give fields, {name: value, ...}"),
        ("sytem: {file: water.xyz}", "sytem: unknown field; did you mean system?"),
        ("7: {file: water.xyz}", "7: unknown field; there are system, "),
        ("explore: {temprature: 500}", "explore.temprature: unknown field; did you mean temperature?"),
        ("explore: {walker: 4}", "explore.walker: unknown field; did you mean walkers?"),
        ("potential: {cutof: 4}", "potential.cutof: unknown field; did you mean cutoff?"),
        ("potential: equivariant", "potential: equivariant does not fit; give fields, {name: value, ...}"),
        ("stop: {qqq: 4}", "stop.qqq: unknown field; there are labels, quiet, time, error, probes, wall"),
        (
            "explore: {name: nvt_langevn}",
            "explore.name: unknown explorer or sampler 'nvt_langevn'; did you mean nvt_langevin?",
        ),
        (
            "explore: {name: [1]}",
            "explore.name: unknown explorer or sampler [1]; There are band, descent, dimer, npt_nose_hoover, nve",
        ),
        ("label: {name: zzz}", "label.name: unknown labeler or oracle 'zzz'; There are "),
        ("explore: {temperature: hot}", "explore.temperature: hot does not fit; give a number in K"),
        (
            "explore: {temperature: 500 fs}",
            "explore.temperature: '500 fs' does not fit: fs is a time, needed is a temp",
        ),
        (
            "explore: {timestep: 1 parsec}",
            "explore.timestep: '1 parsec' does not fit: unknown unit 'parsec'; known are",
        ),
        ("explore: {timestep: 0}", "explore.timestep: 0 is too small; give more than 0 fs"),
        ("explore: {timestep: -1 fs}", "explore.timestep: -1.0 is too small; give more than 0 fs"),
        ("explore: {timestep: .nan}", "explore.timestep: .nan does not fit; give a number in fs"),
        ("explore: {timestep: true}", "explore.timestep: true does not fit; give a number in fs"),
        ("explore: {timestep: null}", "explore.timestep: null does not fit; give a number in fs"),
        ("explore: {walkers: 0}", "explore.walkers: 0 is too small; give at least 1"),
        ("explore: {walkers: 2.5}", "explore.walkers: 2.5 does not fit; give a whole number"),
        ("explore: {walkers: '8'}", "explore.walkers: '8' does not fit; give a whole number"),
        ("committee: {members: 1}", "committee.members: 1 has no spread; give at least 2"),
        ("committee: {kind: half}", "committee.kind: half does not fit; give full or shared"),
        ("committee: {signs: 2}", "committee.signs: 2 does not fit; give 0, or committee.kind = shared"),
        (
            "committee: {kind: shared, signs: 1}",
            "committee.signs: 1 is too small; give at least 2, or 0 for the forces",
        ),
        ("committee: {kind: shared, signs: -1}", "committee.signs: -1 is too small; give at least 0"),
        ("committee: {batching: scan}", "committee.batching: scan does not fit; give auto or map or vmap"),
        ("train: {bootstrap: no}", "train.bootstrap: no does not fit; give true or false"),
        ("train: {bootstrap: 1}", "train.bootstrap: 1 does not fit; give true or false"),
        ("train: {ema: 1}", "train.ema: 1 is too large; give less than 1"),
        ("train: {huber: big}", "train.huber: big does not fit; give a number in eV/Å"),
        ("system: {file: water.xyz, supercell: [2, 2]}", "system.supercell: [2, 2] does not fit; give a list of 3"),
        ("system: {file: water.xyz, supercell: 2}", "system.supercell: 2 does not fit; give a list"),
        ("system: {file: water.xyz, supercell: [1, 0, 1]}", "system.supercell[1]: 0 is too small; give at least 1"),
        ("system: {file: water.xyz, spin: -1}", "system.spin: -1 is too small; give at least 0"),
        ("seed: one", "seed: one does not fit; give a whole number"),
        ("precision: double", "precision: double does not fit; give float32 or float64"),
        ("validate: {data: none.xyz}", "validate.data: there is no file {folder}/none.xyz"),
    ],
)
def test_a_mistake_names_the_field_and_what_would_be_right(folder, text, expected):
    first = (
        "" if "ystem" in text or "sytem" in text or text in ("",) or text[0] == "7" else "system: {file: water.xyz}\n"
    )
    assert complaint(folder, first + text).startswith(expected.replace("{folder}", str(folder.resolve())))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("system: {file: water.xyz}\nseed: 1\nseed: 2\n", ", line 3: not valid YAML: 'seed' is given twice"),
        ("explore: {walkers: 1, walkers: 1}", ", line 1: not valid YAML: 'walkers' is given twice"),
        ("? [seed]\n: 1\n", ", line 1: not valid YAML: found unhashable key"),
        ("system:\n  file: [water.xyz\nseed: 1\n", ", line 3: not valid YAML: "),
        ("system:\n\tfile: water.xyz\n", ", line 2: not valid YAML: "),
        ("system: !!python/object:os.system {}", ", line 1: not valid YAML: could not determine a constructor"),
        ("a: 1\n--- \nb: 2\n", ", line 2: not valid YAML: but found another document"),
        ("seed: \x07", ": not valid YAML: unacceptable character"),
        ("- system\n", ": holds no sections; give"),
        ("water.xyz", ": holds no sections; give"),
    ],
)
def test_yaml_mistakes_name_the_line(folder, text, expected):
    path = write(folder, text)
    with pytest.raises(InputError) as caught:
        load(path)
    assert str(caught.value).startswith(f"{path}{expected}") and "\n" not in str(caught.value)


def test_a_configuration_that_is_not_there_or_not_text(folder):
    with pytest.raises(InputError, match=r"none\.yaml: there is no such file"):
        load(folder / "none.yaml")
    with pytest.raises(InputError, match="there is no such file"):
        load(folder)
    (folder / "binary.yaml").write_bytes(b"system: \xff\xfe")
    with pytest.raises(InputError, match="not a text file in UTF-8"):
        load(folder / "binary.yaml")


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("walkers", "override 'walkers': give key.sub=value, such as explore.walkers=4"),
        ("=4", "override '=4': give key.sub=value"),
        ("explore..walkers=4", "override 'explore..walkers=4': give key.sub=value"),
        ("explore.walkers=many", "override 'explore.walkers=many': explore.walkers: many does not fit"),
        ("explore.walker=4", "override 'explore.walker=4': explore.walker: unknown field; did you mean walkers?"),
        ("explore.walkers.x=4", "override 'explore.walkers.x=4': explore.walkers is 8, which has no fields"),
        ("explore={walkers: x}", "override 'explore={walkers: x}': explore.walkers: x does not fit"),
        ("committee.signs=2", "override 'committee.signs=2': committee.signs: 2 does not fit"),
        ("system.supercell=[1, 2", "override 'system.supercell=[1, 2', line 1: not valid YAML"),
        ("system.supercell=[1, 2, 0]", "override 'system.supercell=[1, 2, 0]': system.supercell[2]: 0 is too small"),
    ],
)
def test_a_wrong_override_is_named(folder, override, expected):
    with pytest.raises(InputError) as caught:
        load(folder / "config.yaml", ["seed=3", override])
    assert str(caught.value).startswith(expected)


def test_dump_loads_back_equal(folder):
    overrides = ["stop.quiet=2 fs", "train.final_learning_rate=1e-7", "train.huber=0.05", "validate.data=water.xyz"]
    config = load(folder / "config.yaml", overrides)
    text = dump(config)
    assert load(write(folder, text)) == config
    assert "  temperature: 500.0  # K\n" in text and "  quiet: 0.002  # ps\n" in text
    assert parse(yaml12.parse(text, "text"), "/nowhere") == config  # every path in it is absolute


def test_a_run_folder_needs_nothing_else(folder, tmp_path_factory):
    config = load(folder / "config.yaml", ["validate.data=water.xyz"])
    away = tmp_path_factory.mktemp("away")
    copied = resolved(config, away / "run")
    (away / "run").rename(away / "moved")
    (folder / "water.xyz").unlink()
    moved = load(away / "moved" / FILE_NAME)
    assert moved.system.file.read_text() == WATER and moved.system.file.is_relative_to(away.resolve() / "moved")
    assert moved.validate.data is not None and moved.validate.data != moved.system.file
    assert dataclasses.replace(moved, system=copied.system, validate=copied.validate) == copied
    # Again into the same folder changes nothing.
    before = (away / "moved" / FILE_NAME).read_text()
    assert resolved(moved, away / "moved") == moved and (away / "moved" / FILE_NAME).read_text() == before


def test_offline_training_has_its_own_sections(folder):
    text = "data: {file: water.xyz}\ntrain: {steps: 10, stress_weight: 0.1}\n"
    config = load(write(folder, text), ["data.validation=water.xyz"], Offline)
    assert config.data.validation == config.data.file and config.train.stress_weight == 0.1
    assert load(write(folder, dump(config)), cls=Offline) == config
    assert complaint(folder, "", cls=Offline) == "data.file: missing; give a file"
    assert complaint(folder, text + "explore: {}", cls=Offline).startswith("explore: unknown field; there are data, ")


@pytest.mark.parametrize("kind", registry.KINDS)
def test_every_registered_part_can_be_configured(kind):
    import_parts()
    sections = {"explorer": schema.Explore, "gate": schema.Gate, "labeler": schema.Label, "oracle": schema.Label}
    own = {field.name for field in dataclasses.fields(sections[kind])} if kind in sections else set()
    for name in registry.names(kind):
        for option in registry.options(kind, name):
            assert option.name not in own | {"name"}, f"{name}.{option.name} would hide a field of the section"
            assert describe(option.annotation) != "a value", f"{name}.{option.name} needs a type"
            if option.default not in (None, registry.inspect.Parameter.empty) and Path not in get_args(
                option.annotation
            ):
                raw = list(option.default) if isinstance(option.default, tuple) else option.default
                assert _convert(raw, option.annotation, option.name, Path()) == option.default


def test_names_of_labelers_and_oracles_differ():
    import_parts()
    assert not set(registry.names("labeler")) & set(registry.names("oracle"))


@pytest.mark.parametrize("section", [Config, Offline])
def test_every_default_satisfies_its_own_annotation(section):
    def visit(cls):
        for field in dataclasses.fields(cls):
            annotation = typing.get_type_hints(cls, include_extras=True)[field.name]
            if dataclasses.is_dataclass(annotation):
                visit(annotation)
            elif field.default is not dataclasses.MISSING:
                raw = list(field.default) if isinstance(field.default, tuple) else field.default
                assert _convert(raw, annotation, field.name, Path()) == field.default

    visit(section)


def test_words_for_annotations():
    huber = typing.get_type_hints(schema.Train, include_extras=True)["huber"]
    assert describe(huber) == "a number in eV/Å or null"
    assert unit_of(huber) == "eV/Å" and unit_of(int) == ""
    assert describe(Literal["a", "b"]) == "a or b"
    assert describe(tuple[int, ...]) == "a list" and describe(Mapping[str, int]) == "a mapping"


def test_lists_and_mappings_of_options():
    assert _convert([1, 2.5], tuple[float, ...], "x", Path()) == (1.0, 2.5)
    assert _convert({"a": [1]}, Mapping[str, list[int]] | None, "x", Path()) == {"a": (1,)}
    with pytest.raises(InputError, match=r"x\.a: b does not fit; give a whole number"):
        _convert({"a": "b"}, Mapping[str, int], "x", Path())
    assert _convert("a", int | str, "x", Path()) == "a" and _convert(3, int | str, "x", Path()) == 3
    with pytest.raises(TypeError, match="no rule for"):
        _convert(1, complex, "x", Path())


@pytest.mark.parametrize(
    "value", ["yes", "1e-3", "0x10", "null", "", "a: b", "# no", "1:30", "é Å", 1e-300, -0.0, 10**20, [], {}, math.inf]
)
def test_yaml_text_reads_back(value):
    assert yaml12.parse(f"x: {yaml12.inline(value)}  # note", "text") == {"x": value}


def test_yaml_scalars_are_those_of_version_1_2():
    text = "[1e-3, 1.e2, .5, +3, 010, 1:30, no, on, ~, 2024-01-01, 0x1f, -.inf]"
    expected = [1e-3, 100.0, 0.5, 3, 10, "1:30", "no", "on", None, "2024-01-01", "0x1f", -math.inf]
    assert yaml12.parse(text, "text") == expected


def test_a_part_without_a_required_option(folder, monkeypatch):
    monkeypatch.setattr(registry, "_table", {kind: dict(table) for kind, table in registry._table.items()})

    @registry.register("score")
    def needy(prediction, structure, *, exponent: float, note: str = ""):
        """Needs an exponent."""

    text = "system: {file: water.xyz}\nscore: {name: needy"
    assert complaint(folder, text + "}") == "score.exponent: missing; needy needs a number"
    config = load(write(folder, text + ", exponent: 2}"))
    assert config.score == Part("score", "needy", (("exponent", 2.0), ("note", "")))
    assert complaint(folder, text + ", exponent: 2, note: 5}").startswith("score.note: 5 does not fit; give text")


def test_files_of_the_command_line_may_lie_where_it_runs(folder, tmp_path_factory, monkeypatch):
    here = tmp_path_factory.mktemp("here")
    monkeypatch.chdir(here)
    (here / "other.xyz").write_text(WATER)
    assert load(folder / "config.yaml", ["system.file=other.xyz"]).system.file == (here / "other.xyz").resolve()
    assert load(folder / "config.yaml", ["system.file=water.xyz"]).system.file == (folder / "water.xyz").resolve()
    with pytest.raises(InputError, match=r"there is no file .*none.xyz nor .*none.xyz; .* or to the working directory"):
        load(folder / "config.yaml", ["system.file=none.xyz"])
    (here / "water.xyz").write_text(WATER)
    with pytest.raises(InputError, match=r"system.file: there are .* and .*; give the whole path of one of them"):
        load(folder / "config.yaml", ["system={file: water.xyz}"])
    text = SECTIONS.replace("water.xyz", "other.xyz")  # in the file a path is relative to the file
    with pytest.raises(InputError, match=r"other.xyz; paths are relative to the configuration's folder$"):
        load(write(folder, text))
