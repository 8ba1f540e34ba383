"""Tasks on surfaces in closed form, whose reference method is another surface: same energies, other lengths."""

import json

import ase
import jax
import numpy as np
import pytest
from closed_surfaces import leps_energy, model
from test_saddles import reactants, top

from jaxal.core import registry
from jaxal.simulate.barrier_task import BELOW, upper
from jaxal.simulate.surface import expander, opinions
from jaxal.simulate.task import Answer, Labeled, Point, Turn, approached, labeled_point, relaxation
from jaxal.simulate.vibrations import motions

pytestmark = pytest.mark.usefixtures("surfaces")
SLOW = {"network"}  # in test_discovery.py, too
every = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in registry.names("task")]
)
LEPS = model("leps")
RATIO = 1.02  # of the lengths of the method over those of the model


def method(asked: list[ase.Atoms], ratio: float = RATIO):
    """LEPS with other lengths, so with the same barrier; it keeps what it is asked."""

    def energy(position):
        first, second, third = position
        lengths = [jax.numpy.linalg.norm(a - b) for a, b in ((first, second), (second, third), (first, third))]
        return leps_energy(*(length / ratio for length in lengths))

    def reference(structures):
        asked.extend(atoms.copy() for atoms in structures)
        with jax.enable_x64(True):
            both = [jax.value_and_grad(energy)(atoms.positions) for atoms in structures]
        return [Labeled(float(value), -np.asarray(slope)) for value, slope in both]

    return reference


def lowest() -> float:
    """The energy of H + H2 by the method, eV."""
    apart = reactants(6.0, True)
    apart.positions *= RATIO
    return method([])([apart])[0].energy


def images(number: int = 7, distance: float = 3.0) -> list[ase.Atoms]:
    first, last = reactants(distance, True), reactants(distance, False)
    return [
        ase.Atoms("H3", positions=first.positions + x * (last.positions - first.positions) + [[0, 0.1 * x, 0]] * 3)
        for x in np.linspace(0, 1, number)
    ]


def test_a_barrier_from_labels_is_the_methods_own():
    _, height = top()
    asked: list[ase.Atoms] = []
    task = registry.get("task", "barrier")(tolerance=0.05)
    answer = task.answer(LEPS, Turn(images(), [], 12, method(asked)))
    assert answer.satisfied and len(asked) == 3 and asked[0].get_distance(0, 1) == pytest.approx(0.93, abs=0.02)
    # the model's own points are higher by 5 meV than the method's; what is left is that H and H2 are not quite apart
    assert answer.labels[0].energy - (lowest() + height) > 4e-3 and answer.labels[1].energy - lowest() > 4e-3
    assert answer.record["forward"] == pytest.approx(height, abs=1.2e-3)
    assert abs(answer.record["forward"] - height) < answer.record["error"] <= 0.05
    assert "barrier: " in answer.text and "kcal/mol" in answer.text


@pytest.mark.slow
def test_what_has_a_label_nearby_is_not_asked_again():
    task = registry.get("task", "barrier")(tolerance=0.05)
    first: list[ase.Atoms] = []
    before = task.answer(LEPS, Turn(images(), [], 12, method(first)))
    known = list(zip(before.structures, before.labels, strict=True))
    again: list[ase.Atoms] = []
    after = task.answer(LEPS, Turn(images(), known, 9, method(again)))
    assert not again and after.structures == []
    assert after.record["forward"] == pytest.approx(before.record["forward"], abs=1e-6)
    # labels that leave too much force do not count as known
    tight = registry.get("task", "barrier")(tolerance=1e-4)
    later = tight.answer(LEPS, Turn(images(), known, 9, method(again)))
    assert len(again) == len(later.labels) > 0 and not later.satisfied


def test_of_a_path_the_part_around_its_top_is_asked_about():
    """A bond that is stretched, broken almost, and made: far down on both sides, farther on one."""
    lengths = (0.9, 1.6, 2.2, 1.6, 1.3, 1.0, 0.75)
    path = [ase.Atoms("H3", positions=[[0, 0, 0], [r, 0, 0], [r + 7.0, 0, 0]]) for r in lengths]
    energy = opinions(LEPS, path).energy.mean(axis=1)
    below = np.flatnonzero(energy < energy[2] - BELOW)
    assert below.tolist()[0] == 0 and len(below) > 3
    first, last = below[below < 2].max(), below[below > 2].min()
    assert [atoms.get_distance(0, 1) for atoms in upper(LEPS, path)] == pytest.approx(lengths[first : last + 1])
    assert [atoms.get_distance(0, 1) for atoms in upper(LEPS, path[::-1])] == pytest.approx(
        lengths[first : last + 1][::-1]
    )
    flat = [ase.Atoms("H3", positions=[[0, 0, 0], [r, 0, 0], [r + 7.0, 0, 0]]) for r in (0.70, 0.74, 0.8, 0.78, 0.74)]
    assert upper(LEPS, flat) == flat, "nothing of it is far below"


def test_where_forces_point_to_is_nearer_and_what_fails_changes_nothing():
    length, _ = top()
    expand, reference = expander(LEPS), method([])
    point = Point(ase.Atoms("H3", positions=[[x, 0, 0] for x in (0.0, length, 2 * length)]), None, True)
    point = labeled_point(expand, point, reference([point.atoms])[0])
    (after, same), moved, labels = approached(expand, [point, point], [0], reference)
    assert same is point and len(moved) == len(labels) == 1
    assert after.atoms is moved[0] and after.label is labels[0] and after.size < 0.1 * point.size
    assert moved[0].get_distance(0, 1) == pytest.approx(RATIO * length, abs=2e-3)
    nowhere = [Labeled(np.nan, np.full((3, 3), np.nan))]
    assert approached(expand, [point], [0], lambda structures: nowhere)[0] == [point]


def test_what_is_uphill_and_what_is_downhill_of_a_saddle_do_not_make_up_for_each_other():
    length, _ = top()
    saddle = ase.Atoms("H3", positions=[[x, 0, 0] for x in (0.0, length, 2 * length)])
    expansion, (basis, _) = expander(LEPS)(saddle), motions(saddle)
    root = np.repeat(np.sqrt(saddle.get_masses()), 3)
    values, modes = np.linalg.eigh(basis.T @ (expansion.hessian[0] / np.outer(root, root)) @ basis)
    assert values[0] < 0 < values[-1]
    slope = np.zeros_like(values)
    slope[[0, -1]] = np.sqrt(2 * 0.01 * np.abs(values[[0, -1]]))  # 10 meV each
    force = ((basis @ modes @ slope) * root).reshape(3, 3)
    lower, size = relaxation(expansion, saddle, force)
    assert abs(lower) < 1e-9 and size == pytest.approx(0.02)


@pytest.mark.slow
def test_ends_that_stay_are_known_by_their_own_labels():
    asked: list[ase.Atoms] = []
    task = registry.get("task", "barrier")(tolerance=1e-4, ends="fixed")
    before = task.answer(LEPS, Turn(images(distance=1.6), [], 12, method(asked)))
    known = list(zip(before.structures, before.labels, strict=True))
    again: list[ase.Atoms] = []
    task.answer(LEPS, Turn(images(distance=1.6), known, 9, method(again)))
    assert len(asked) == 4 and len(again) <= 1, "of the saddle alone, and where it should be by the forces there"
    assert np.linalg.norm(asked[3].positions - asked[0].positions, axis=-1).max() < 0.2
    assert before.satisfied and before.record["error"] < 1e-5
    few = task.answer(LEPS, Turn(images(distance=1.6), known[:3], 0, method([])))
    assert few.record and not few.satisfied, "without labels left what is there must do"
    next_ = task.answer(LEPS, Turn(images(distance=1.6), known, 9, method(again), before.again))
    assert next_.record["forward"] == pytest.approx(before.record["forward"], abs=1e-5), "from the saddle that it had"


@pytest.mark.slow
def test_a_failed_label_is_no_answer():
    def failing(structures):
        return [Labeled(np.nan, np.full((3, 3), np.nan)) for _ in structures]

    answer = registry.get("task", "barrier")().answer(LEPS, Turn(images(), [], 12, failing))
    assert not answer.satisfied and answer.record == {} and "the method fails" in answer.text
    assert len(answer.structures) == len(answer.labels) == 3
    # where the method has failed it is not asked again
    known = list(zip(answer.structures, answer.labels, strict=True))
    again = registry.get("task", "barrier")().answer(LEPS, Turn(images(), known, 9, failing))
    assert not again.labels and not again.satisfied and again.text == answer.text


@pytest.mark.slow
def test_without_a_saddle_images_are_labeled_to_learn_from():
    """Between two structures on the same side there is none."""
    asked: list[ase.Atoms] = []
    path = [reactants(x, True) for x in (1.9, 2.0, 2.1, 2.2, 2.3)]
    answer = registry.get("task", "barrier")().answer(LEPS, Turn(path, [], 2, method(asked)))
    assert not answer.satisfied and answer.text.startswith("barrier: none yet") and 1 <= len(asked) <= 2


def test_a_band_that_its_members_differ_about_rests_and_is_labeled():
    """Their forces are in proportion: they differ most where these are largest."""
    asked: list[ase.Atoms] = []
    path = images()
    task = registry.get("task", "barrier")(wary=0.01, ends="fixed")
    answer = task.answer(LEPS, Turn(path, [], 12, method(asked)))
    assert not answer.satisfied and answer.text.startswith("barrier: none yet, its members differ by ")
    moved = [min(np.abs(atoms.positions - image.positions).max() for image in path) for atoms in asked]
    assert 0 < len(asked) <= 3 and max(moved) < 0.8, "it had not gone far"


@pytest.mark.slow
def test_fixed_ends_stay_and_count_as_they_are():
    asked: list[ase.Atoms] = []
    path = images(distance=1.6)  # not minima: 10 meV over them
    answer = registry.get("task", "barrier")(tolerance=0.05, ends="fixed").answer(
        LEPS, Turn(path, [], 12, method(asked))
    )
    assert answer.satisfied
    np.testing.assert_allclose(asked[1].positions, path[0].positions, atol=1e-5)
    _, height = top()
    own = method([], RATIO)([path[0]])[0].energy
    assert answer.record["forward"] == pytest.approx(height - (own - lowest()), abs=3e-3)


@every
@pytest.mark.parametrize("left", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_no_more_is_asked_than_there_are_labels_left(name, left, tmp_path):
    asked: list[ase.Atoms] = []
    task = registry.get("task", name)()
    assert task.labels >= 1
    answer = task.answer(LEPS, Turn(images(), [], left, method(asked)))
    assert isinstance(answer, Answer) and len(asked) == len(answer.structures) == len(answer.labels) <= left
    for mine, theirs in zip(answer.structures, asked, strict=True):
        assert np.array_equal(mine.positions, theirs.positions) and np.array_equal(mine.numbers, theirs.numbers)
    assert "\n" not in answer.text and json.dumps(answer.record)
    assert not answer.satisfied or answer.record
    answer.save(tmp_path / "task")
    assert list((tmp_path / "task").iterdir())
    same = task.answer(LEPS, Turn(images(), [], left, method([])))
    assert same.record == answer.record and same.text == answer.text
