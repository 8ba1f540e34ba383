"""A folder that is worked on says who has it, as far as that is known, and is given back."""

import json
import os
import socket

import pytest

from jaxal.core.types import InputError
from jaxal.run import lock

ME = {"pid": os.getpid(), "host": socket.gethostname()}


def test_a_folder_is_held_once_and_again_after_an_error(tmp_path):
    path = tmp_path / lock.FILE_NAME
    with pytest.raises(ZeroDivisionError), lock.held(tmp_path):
        assert json.loads(path.read_text()) == ME
        raise ZeroDivisionError
    assert path.read_text() == ""
    with lock.held(tmp_path):
        assert json.loads(path.read_text()) == ME


@pytest.mark.parametrize(
    ("said", "holder"),
    [
        ('{"pid": 7, "host": "node3"}', "process 7 on node3"),
        ("", "another process"),  # it has not written yet
        ('{"pid"', "another process"),
        ("[1]", "another process"),
        ('{"pid": "me", "host": "here"}', "another process"),
    ],
)
def test_who_holds_it_is_told_as_far_as_it_is_known(tmp_path, said, holder):
    with lock.held(tmp_path):
        (tmp_path / lock.FILE_NAME).write_text(said)
        with pytest.raises(InputError) as error, lock.held(tmp_path):
            pass
        assert str(error.value) == f"{tmp_path}: {holder} is at work on it; wait for its end, or end it"
        assert (tmp_path / lock.FILE_NAME).read_text() == said  # who only tries changes nothing
