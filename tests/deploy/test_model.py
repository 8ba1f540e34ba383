"""A model file that is damaged, or of another program, is one line that names it and what is wrong."""

import json
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest
from ase.build import bulk, molecule

from jaxal.core.types import InputError
from jaxal.deploy import model as models

MORSE = models.Model("morse", (), (1, 8), {}, np.arange(2.0), "float32", ((0, 0),))


@pytest.fixture(scope="module")
def arrays(tmp_path_factory) -> dict[str, np.ndarray]:
    """What stands in the file of a small model."""
    options = (("cutoff", 3.0), ("channels", 2), ("l_max", 1), ("layers", 1))
    empty = models.Model("equivariant", options, (1, 8), {}, np.arange(2.0), "float32", ((0, 0),))
    params = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), models.shapes(empty, 2))
    path = tmp_path_factory.mktemp("model") / models.FILE_NAME
    models.save(path, empty._replace(params=params))
    with np.load(path) as file:
        return {name: file[name] for name in file.files}


def changed(header: dict[str, Any], **values: Any) -> dict[str, Any]:
    return header | values


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda h: changed(h, potential="nothing"), "unknown potential 'nothing'"),
        (
            lambda h: changed(h, options=h["options"] | {"colour": 1}),
            "the potential equivariant cannot be built: .*colour",
        ),
        (
            lambda h: changed(h, options=h["options"] | {"channels": "many"}),
            "the potential equivariant cannot be built",
        ),
        (
            lambda h: changed(h, options=h["options"] | {"channels": 3}),
            r"its parameter .* is float32 .*, that of .* is",
        ),
        (lambda h: changed(h, uncertainty="nothing"), "unknown uncertainty 'nothing'"),
        (
            lambda h: changed(h, uncertainty="dropout", uncertainty_options={"colour": 1}),
            "the uncertainty dropout cannot be built: .*colour",
        ),
        (lambda h: changed(h, leaves=[]), "holds no parameters"),
        (lambda h: changed(h, leaves=h["leaves"][1:]), "holds other parameters than the potential equivariant"),
        (
            lambda h: changed(h, leaves=[[name, "float64"] for name, _ in h["leaves"]]),
            r"not a model file of jaxal \(ValueError\)",
        ),
        (lambda h: {}, "written by an older jaxal"),
        (lambda h: [], r"not a model file of jaxal \(AttributeError\)"),
    ],
)
def test_a_header_that_does_not_fit_is_one_line(tmp_path, arrays, change: Callable[[Any], Any], message):
    path = tmp_path / models.FILE_NAME
    header = json.dumps(change(json.loads(str(arrays["header"]))))
    np.savez(path, **arrays | {"header": np.array(header)})  # pyright: ignore[reportArgumentType]
    with pytest.raises(InputError, match=f"^{path}: {message}") as error:
        models.load(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("inside", "message"), [(None, "the folder holds no model.npz"), ("", "not a model file of")])
def test_a_folder_without_a_model_is_one_line(tmp_path, inside, message):
    if inside is not None:
        (tmp_path / models.FILE_NAME).write_text(inside)
    with pytest.raises(InputError, match=f"^{tmp_path}.*: {message}"):
        models.load(tmp_path)


NEUTRAL, BOTH = ((0, 0),), ((0, 0), (1, 1))


@pytest.mark.parametrize(
    ("states", "electrons", "state", "message"),
    [
        (NEUTRAL, True, (0, 0), ""),
        (NEUTRAL, True, (1, 1), "their charge is 1, but the model was trained at 0$"),
        (NEUTRAL, True, (0, 2), "their spin is 2, but the model was trained at 0$"),
        (NEUTRAL, False, (0, 2), "trained at 0, of structures that did not say theirs; leave it out$"),
        (BOTH, True, (1, 1), ""),
        (
            BOTH,
            True,
            (2, 0),
            r"^the model was not trained at charge \+2 with 0 unpaired electrons; it knows charge 0 with",
        ),
        (
            ((0, 1),),
            True,
            (0, 1),
            "^the model was trained at charge 0 and spin 1; .*1 unpaired electrons are impossible",
        ),
        (((0, 1),), False, (0, 1), ""),  # a model that knows no electrons
    ],
)
def test_a_state_that_the_model_was_not_trained_at_is_refused(states, electrons, state, message):
    model, water = MORSE._replace(states=states, electrons=electrons), molecule("H2O")
    if not message:
        models.check_state(model, water.numbers, water.pbc, *state)
        return
    with pytest.raises(InputError, match=message):
        models.check_state(model, water.numbers, water.pbc, *state)


def test_a_crystal_may_have_any_electrons_that_its_model_knows():
    copper = bulk("Cu")
    models.check_state(MORSE._replace(states=((0, 0),)), copper.numbers, copper.pbc, 0, 0)
    with pytest.raises(InputError, match="29 electrons"):
        models.check_state(MORSE._replace(states=((0, 0),)), copper.numbers, np.zeros(3, bool), 0, 0)


@pytest.mark.parametrize(("states", "state"), [(((0, 0),), (None, None)), (((1, 2),), (1, 2)), (BOTH, (None, None))])
def test_what_a_structure_does_not_say_is_the_only_state_of_the_model(states, state):
    assert models.unsaid(MORSE._replace(states=states)) == state
