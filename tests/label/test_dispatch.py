"""Labels handed to a thread: committed when they land, noted before they are begun, once for each structure."""

import sqlite3
import time

import numpy as np
import pytest
from label_programs import HYDROGEN, WATER

from jaxal.label.service import open_executor
from jaxal.label.store.commit import keeper
from jaxal.label.store.database import open_store
from jaxal.label.workers.dispatch import ledger_keys, open_dispatch
from jaxal.label.workers.executor import Recipe


@pytest.fixture
def opened(faults, tmp_path):
    """(dispatch, store, keeper, folder) with the labeler that misbehaves as a structure's charge says."""
    recipe = Recipe("faulty", {"folder": str(tmp_path)})
    backend, store = recipe.build(), open_store(tmp_path / "labels.sqlite")
    kept = keeper(store, backend)
    executor = open_executor(recipe, backend, 2, None, 5.0)
    dispatch = open_dispatch(executor, kept, tmp_path / "asked.txt")
    yield dispatch, store, kept, tmp_path
    dispatch.close()
    store.close()


def landed(dispatch, number):
    landings, end = [], time.monotonic() + 60
    while len(landings) < number and time.monotonic() < end:
        landings += dispatch.landed(1.0)
    assert len(landings) == number, dispatch.trouble()
    return {landing.ticket: landing for landing in landings}


def moved(task, by):
    return task._replace(position=task.position + np.array([by, 0.0, 0.0]))


def test_labels_land_by_ticket_and_are_in_the_store_before_anybody_looks(opened):
    dispatch, store, kept, folder = opened
    tasks = {10 + i: moved(HYDROGEN, i) for i in range(5)}
    for ticket, task in tasks.items():
        dispatch.submit(ticket, task)
    assert dispatch.slots == 2
    end = time.monotonic() + 60
    while sum(store.counts().values()) < 5 and time.monotonic() < end:
        time.sleep(0.05)
    assert store.counts()["done"] == 5  # nobody has called `landed`
    landings = landed(dispatch, 5)
    for ticket, task in tasks.items():
        assert landings[ticket].result.energy == pytest.approx(np.sum(task.position))
        assert landings[ticket].key == kept.key(task) and not landings[ticket].from_store
    assert ledger_keys(folder / "asked.txt") == [kept.key(task) for task in tasks.values()]
    assert dispatch.landed(0.0) == [] and dispatch.trouble() == ""


def test_what_the_store_knows_is_not_paid_for_again(opened):
    dispatch, _, _, folder = opened
    dispatch.submit(0, WATER)
    landed(dispatch, 1)
    dispatch.submit(1, WATER)
    assert landed(dispatch, 1)[1].from_store
    # the same structure twice at once is one calculation
    for ticket in (2, 3):
        dispatch.submit(ticket, HYDROGEN)
    landings = landed(dispatch, 2)
    assert landings[2].result.energy == landings[3].result.energy
    assert len((folder / "calls").read_text().splitlines()) == 2


@pytest.mark.parametrize("fault", ["DIES", "RAISES", "NOT_FINITE", pytest.param("HANGS", marks=pytest.mark.slow)])
def test_failures_land_with_their_reason_beside_labels_that_do_not_fail(opened, faults, fault):
    dispatch, store, _, _ = opened
    dispatch.submit(0, HYDROGEN._replace(charge=getattr(faults, fault)))
    dispatch.submit(1, HYDROGEN)
    landings = landed(dispatch, 2)
    assert not landings[0].result.ok and landings[0].result.reason and landings[1].result.ok
    assert sum(count for status, count in store.counts().items() if status != "done") == 1


def test_a_store_that_fails_is_told_and_nothing_counts_as_a_label(opened):
    dispatch, _, _, folder = opened
    with sqlite3.connect(folder / "labels.sqlite") as connection:
        connection.execute("DROP TABLE label")
    dispatch.submit(0, HYDROGEN)
    end = time.monotonic() + 30
    while not dispatch.trouble() and time.monotonic() < end:
        assert dispatch.landed(0.2) == []
    assert dispatch.trouble().startswith("labeling failed: ")


def test_a_ledger_that_a_kill_cut_off_goes_on_on_a_line_of_its_own(faults, tmp_path):
    path = tmp_path / "asked.txt"
    assert ledger_keys(path) == []
    path.write_text("a" * 64 + "\n" + "b" * 20)
    recipe = Recipe("faulty", {"folder": str(tmp_path)})
    backend, store = recipe.build(), open_store(tmp_path / "labels.sqlite")
    kept = keeper(store, backend)
    dispatch = open_dispatch(open_executor(recipe, backend, 0, None, None), kept, path)
    dispatch.submit(0, HYDROGEN)
    landed(dispatch, 1)
    dispatch.close()
    dispatch.close()
    store.close()
    assert ledger_keys(path) == ["a" * 64, kept.key(HYDROGEN)]
