"""A teacher in another process: its numbers are the calculator's; replaced if it dies, it ends with its pupil."""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from label_programs import rattled, task_of
from label_workers import batch_of, through_workers
from model_example import tiny_model
from processes import gone, wait_for

from jaxal.core.discovery import import_parts
from jaxal.core.types import InputError
from jaxal.deploy import teacher as server
from jaxal.deploy.calculator import Calculator
from jaxal.label.methods.teacher import teacher
from jaxal.label.service import Recipe, label_service
from jaxal.label.task import LabelError, Result, Task, code_version, packed, unpacked

import_parts()

ETHANOL = task_of(rattled(molecule("CH3CH2OH")))
DIAMOND = task_of(rattled(bulk("C", cubic=True), 0.1))


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """A committee of two with random weights, for H, C and O."""
    path = tmp_path_factory.mktemp("model") / "model.npz"
    tiny_model(path)
    return path


def words_of(pid: int) -> list[bytes]:
    """The command of a process; no words of one that has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return []


def teachers(parent: int | None = None) -> list[int]:
    """Processes of teachers that were started by `parent`, by this process if not given."""
    processes = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            words = words_of(int(folder.name))
            try:
                state, owner = (folder / "stat").read_text().rpartition(")")[2].split()[:2]
            except OSError:
                continue
            if b"jaxal.deploy.teacher" in words and int(owner) == (parent or os.getpid()) and state != "Z":
                processes.append(int(folder.name))
    return processes


def dead(pid: int) -> bool:
    """Once all its threads are gone, too, and with them its end of the pipes."""
    end = time.monotonic() + 20.0
    while time.monotonic() < end:
        threads = Path(f"/proc/{pid}/task")
        if gone(pid, 0.0) and (not threads.exists() or len(list(threads.iterdir())) <= 1):
            return True
        time.sleep(0.02)
    return False


def asked(model: Path, task):
    box = {"cell": task.cell, "pbc": True} if task.cell.any() else {}
    atoms = Atoms(task.numbers, task.position, calculator=Calculator(model), **box)
    stress = atoms.get_stress(voigt=False) if box else np.full((3, 3), np.nan)  # an open structure has none
    return atoms.get_potential_energy(), atoms.get_forces(), stress


@pytest.fixture
def listening(model):
    """Starts teachers that listen, on a port of their own unless it is given; returns process and address."""
    started = []

    def start(path: Path = model, listen: str = "0"):
        process = subprocess.Popen(
            [sys.executable, "-m", "jaxal.deploy.teacher", str(path), "--listen", listen],
            stdout=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        assert process.stdout
        said = process.stdout.readline()
        match = re.search(r"answers at (\S+:\d+), whoever asks", said)
        assert match, said
        return process, match[1]

    yield start
    for process in started:
        process.kill()
        process.wait()
        process.stdout.close()


# ---------------------------------------------------------------- started here


@pytest.mark.slow
@pytest.mark.parametrize("task", [ETHANOL, DIAMOND], ids=["open", "periodic"])
def test_its_numbers_are_those_of_the_calculator(model, task):
    backend = teacher(model=model)
    backend.check(task)
    result = backend.calculate(task)
    assert result.ok and result.seconds > 0, result.reason
    energy, force, stress = asked(model, task)
    # the same program, compiled by each of two processes: with jax 0.12 not always to the last digit of float32
    np.testing.assert_allclose(result.energy, energy, rtol=3e-7)
    np.testing.assert_allclose(result.force, force, rtol=0, atol=1e-6)
    np.testing.assert_allclose(result.stress, stress, rtol=0, atol=3e-8)  # of 0.1 eV/Å^3
    assert bool(np.isfinite(result.stress).all()) == bool(task.cell.any())


@pytest.mark.slow
def test_it_stays_is_replaced_when_it_dies_and_goes_with_its_backend(model):
    backend = teacher(model=model)
    backend.check(ETHANOL)
    assert not teachers(), "a check keeps no process that may never be asked"
    first = backend.calculate(ETHANOL)
    (original,) = teachers()
    assert backend.calculate(ETHANOL).energy == first.energy and teachers() == [original]

    os.kill(original, signal.SIGKILL)  # between two labels: nothing is lost
    assert dead(original)
    again = backend.calculate(ETHANOL)
    assert again.ok and again.energy == first.energy, again.reason
    (successor,) = teachers()
    assert successor != original

    os.kill(successor, signal.SIGSTOP)  # in the middle of a label: that one has failed
    answers = []
    thread = threading.Thread(target=lambda: answers.append(backend.calculate(ETHANOL)))
    thread.start()
    time.sleep(0.5)
    os.kill(successor, signal.SIGKILL)
    thread.join(20)
    assert not answers[0].ok and answers[0].reason == "the teacher died (signal SIGKILL)"
    assert backend.calculate(ETHANOL).energy == first.energy
    (last,) = teachers()
    del backend
    assert gone(last, 20.0)


@pytest.mark.slow
def test_one_that_takes_too_long_is_ended(model):
    backend = teacher(model=model)
    assert backend.calculate(ETHANOL).ok  # compiled
    impatient = teacher(model=model, patience=0.01)
    result = impatient.calculate(ETHANOL)  # compiles, which takes longer
    assert not result.ok and result.reason == "timeout: the teacher took more than 0.01 s"
    assert len(teachers()) == 1


def test_it_ends_with_its_parent_and_the_parent_loads_no_jax(model, tmp_path):
    """Also in the middle of a calculation: compiling takes longer than the parent lives."""
    program = f"""
    import os, signal, sys, threading, time
    import numpy as np
    from jaxal.label.task import OPEN, Task
    from jaxal.label.methods.teacher import teacher
    backend = teacher(model={str(model)!r})
    task = Task(np.array([8, 1, 1]), np.array([[0.0, 0, 0], [1, 0, 0], [0, 1, 0]]), *OPEN, 0, 0)
    result = backend.calculate(task)
    assert "jax" not in sys.modules, "the host loaded JAX"
    with open({str(tmp_path / "said")!r}, "w") as file:
        file.write(str(result.ok) + " " + result.reason)
    bigger = task._replace(numbers=np.full(40, 6), position=np.random.default_rng(0).normal(size=(40, 3)) * 9)
    threading.Thread(target=backend.calculate, args=(bigger,), daemon=True).start()
    time.sleep(0.3)
    os.kill(os.getpid(), signal.SIGSTOP)
    """
    parent = subprocess.Popen([sys.executable, "-c", textwrap.dedent(program)])
    try:
        assert wait_for(tmp_path / "said", 120.0) == "True "
        (child,) = teachers(parent.pid)
    finally:
        parent.kill()
        parent.wait()
    assert gone(child, 20.0)


def test_workers_have_teachers_that_end_with_them(model, tmp_path):
    record = through_workers("teacher", {"model": str(model)}, ETHANOL, tmp_path / "labels.sqlite")
    assert record.ok, record.reason
    time.sleep(0.5)
    everyone = [int(folder.name) for folder in Path("/proc").iterdir() if folder.name.isdecimal()]
    left = [child for parent in everyone for child in teachers(parent)]
    assert not [child for child in left if str(model).encode() in words_of(child)]


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({}, r"^label\.model: missing; give"),
        ({"model": "no.npz"}, r"^label\.model: cannot read no.npz \(No such file"),
        ({"model": __file__}, r"^label\.model: .*not a model file of jaxal"),
        ({"model": True, "python": ["no-such-python"]}, r"^label\.python: there is no program 'no-such-python'"),
        ({"model": True, "python": [sys.executable, "-I", "-S"]}, r"^label\.python: .*exit status 1.*No module named"),
        ({"model": True, "python": "python3"}, r"^label\.python: 'python3' is no list"),
        ({"address": "localhost:1", "python": ["python3"]}, r"^label\.python: .*leave it out"),
        ({"address": "localhost"}, r"^label\.address: 'localhost' is no address"),
        ({"address": "localhost:1"}, r"^label\.address: no teacher answers at localhost:1 \(.*refused\)"),
        ({"address": "localhost:99999"}, r"^label\.address: no teacher answers"),
    ],
)
def test_what_cannot_be_is_told_by_the_check(options, what, model):
    arguments = options | ({"model": model} if options.get("model") is True else {})
    with pytest.raises(LabelError, match=what) as caught:
        teacher(**arguments).check(ETHANOL)
    assert "\n" not in str(caught.value) and not teachers()


@pytest.mark.slow
def test_what_the_model_was_not_trained_for_is_refused(model):
    backend = teacher(model=model)
    with pytest.raises(LabelError, match=r"^label: the teacher does not know Cl; its model was trained on H, C, O"):
        backend.check(task_of(molecule("CH3Cl")))
    with pytest.raises(
        LabelError, match=r"^charge: 1 does not fit; the teacher's model was trained at charge 0 with 0 unp"
    ):
        backend.check(ETHANOL._replace(charge=1))
    with pytest.raises(LabelError, match=r"^spin: 2 does not fit"):
        backend.check(ETHANOL._replace(spin=2))
    result = backend.calculate(task_of(molecule("CH3Cl")))
    assert not result.ok and "does not know Cl" in result.reason
    nowhere = backend.calculate(ETHANOL._replace(position=ETHANOL.position * 0))
    assert not nowhere.ok and "no finite energy" in nowhere.reason


# ---------------------------------------------------------------- at an address


def test_many_share_one_that_listens(model, listening, tmp_path):
    process, address = listening()
    assert address.startswith("127.0.0.1:")
    here, there = teacher(model=model), teacher(address=address)
    assert (there.method, there.version) == (here.method, here.version), "one model, one key"
    energy, force, _ = asked(model, ETHANOL)
    first, second = teacher(address=address), teacher(address=address, model=model)
    for backend in (first, second, first):
        backend.check(ETHANOL)
        result = backend.calculate(ETHANOL)
        assert result.ok and result.energy == energy, result.reason
        np.testing.assert_array_equal(result.force, force)
    assert not teachers() or teachers() == [process.pid]

    # Through the label service, and workers: the second time from the store.
    batch, table = batch_of(ETHANOL)
    for from_store in (False, True):
        recipe = Recipe("teacher", {"address": address})
        service = label_service(recipe, table=table, store=tmp_path / "s.sqlite", workers=2, max_force=1e9)
        assert service.label(batch, np.ones(1, bool)).ok.all()
        (record,) = service.drain()
        assert record.from_store == from_store
        service.close()


def test_strangers_do_no_harm(listening):
    process, address = listening()
    host, port = address.split(":")
    backend = teacher(address=address)
    for message in (b"", b"GET / HTTP/1.1\r\n\r\n", b"\x00\x00\x00\x05hello", b"\xff" * 100, b"\x7f\xff\xff\xff"):
        with socket.create_connection((host, int(port))) as stranger:
            stranger.sendall(message)
    assert backend.calculate(ETHANOL).ok and process.poll() is None


@pytest.mark.slow
def test_a_teacher_that_is_gone_fails_one_label_and_may_come_back(model, listening, tmp_path):
    process, address = listening()
    backend = teacher(address=address)
    first = backend.calculate(ETHANOL)
    assert first.ok, first.reason
    process.send_signal(signal.SIGSTOP)
    answers = []
    thread = threading.Thread(target=lambda: answers.append(backend.calculate(ETHANOL)))
    thread.start()
    time.sleep(0.5)
    process.kill()
    process.wait()
    thread.join(20)
    assert not answers[0].ok and answers[0].reason == f"the teacher at {address} is gone"
    lost = backend.calculate(ETHANOL)
    assert not lost.ok and lost.reason.startswith(f"label.address: no teacher answers at {address} (")
    process, _ = listening(listen=address)
    assert backend.calculate(ETHANOL).energy == first.energy

    # Another model at the same address would have other numbers under the same key.
    process.kill()
    process.wait()
    other = tmp_path / "model.npz"
    with np.load(model) as file:
        arrays = {name: file[name] for name in file.files}
    np.savez(other, **arrays | {"reference": arrays["reference"] + 1})
    listening(other, address)
    refused = backend.calculate(ETHANOL)
    assert not refused.ok and refused.reason.startswith("label.address: the teacher has another model now")
    with pytest.raises(LabelError, match="another model"):
        teacher(address=address, model=model).check(ETHANOL)


def test_what_is_no_teacher_is_not_believed():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]

        def greet() -> None:
            for message in (b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\x00\x00\x00\x01\x2a"):
                client, _ = server.accept()
                with client:
                    client.sendall(message)

        threading.Thread(target=greet, daemon=True).start()
        for _ in range(2):
            with pytest.raises(LabelError, match=r"^label\.address: what answers "):
                teacher(address=f"127.0.0.1:{port}")


def test_a_teacher_without_a_model_says_so():
    ended = subprocess.run(
        [sys.executable, "-m", "jaxal.deploy.teacher", "no.npz", "--listen", "0"], capture_output=True, text=True
    )
    assert ended.returncode == 2
    assert ended.stderr == "jaxal.deploy.teacher: error: no.npz: there is no such model file or run folder\n"


# ---------------------------------------------------------------- in this process


def answer_of(connection: Connection, task: Task) -> Result:
    connection.send_bytes(packed(task))
    return Result(*unpacked(connection.recv_bytes()))


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def test_it_answers_what_it_can_and_fails_what_it_cannot_until_ctrl_c(model, capsys):
    """A connection outlives a label that fails, and not a message that is no task."""
    port, answers, ended = free_port(), [], threading.Event()

    def ask() -> None:
        try:
            while not ended.is_set():
                try:
                    caller = socket.create_connection(("127.0.0.1", port))
                    break
                except ConnectionRefusedError:  # it loads the model first
                    time.sleep(0.02)
            with Connection(caller.detach()) as connection:
                answers.append(unpacked(connection.recv_bytes()))
                chlorine = task_of(molecule("HCl"))
                for task in (ETHANOL, chlorine, ETHANOL._replace(spin=2), ETHANOL._replace(numbers=np.array([6]))):
                    answers.append(answer_of(connection, task))
                connection.send_bytes(packed([1, 2]))
                with pytest.raises(EOFError):
                    connection.recv_bytes()
        finally:
            while not ended.is_set():
                os.kill(os.getpid(), signal.SIGINT)
                ended.wait(2.0)  # where it came just before the main thread began to wait it is not heard

    thread = threading.Thread(target=ask, daemon=True)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    thread.start()
    try:
        assert server.main([str(model), "--listen", str(port)]) == 130
    finally:
        ended.set()
        signal.signal(signal.SIGINT, before)
    thread.join(10.0)
    hello, result, *refused = answers
    assert hello[0] == server.FORMAT and hello[2:] == [[1, 6, 8], [[0, 0]], code_version("jaxal")]
    energy, force, _ = asked(model, ETHANOL)
    assert result.ok and result.energy == pytest.approx(energy, rel=3e-7)
    np.testing.assert_allclose(result.force, force, rtol=0, atol=1e-6)
    assert np.isnan(result.stress).all()  # it repeats nowhere
    assert [each.ok for each in refused] == [False] * 3
    for each, what in zip(refused, ("Cl", "their spin is 2", "structure: 1 atoms, positions (9, 3)"), strict=True):
        assert what in each.reason and "\n" not in each.reason
    said = capsys.readouterr()
    assert said.out == f"jaxal.deploy.teacher: {model} answers at 127.0.0.1:{port}, whoever asks\n"
    assert said.err.startswith("jaxal.deploy.teacher: no task (TypeError") and said.err.count("\n") == 1


@pytest.mark.parametrize(("message", "what"), [(b"GET / HTTP/1.1", "ExtraData"), (packed(3), "TypeError")])
def test_a_message_that_is_no_task_ends_the_conversation(capsys, message, what):
    ours, theirs = Pipe()
    with ours, theirs:
        ours.send_bytes(message)
        server.serve(theirs.recv_bytes, theirs.send_bytes, lambda task: pytest.fail("it was calculated"))
        assert not ours.poll()
    assert f"no task ({what}" in capsys.readouterr().err


def test_one_that_has_left_is_not_missed(capsys):
    ours, theirs = Pipe()
    with theirs:
        ours.send_bytes(packed(ETHANOL))
        ours.close()
        calculated: list[Task] = []

        def label(task: Task) -> Result:
            calculated.append(task)
            return Result(0.0, task.position, task.cell, True, "", 0.0)

        server.serve(theirs.recv_bytes, theirs.send_bytes, label)
    assert len(calculated) == 1 and capsys.readouterr().err == ""


def test_a_file_of_parts_that_is_not_there_is_named(model, tmp_path):
    with pytest.raises(InputError, match=f"^--part {tmp_path}/none.py: there is no such file"):
        server.load(model, [tmp_path / "none.py"])


@pytest.mark.parametrize("listen", ["here", "", "localhost:", "65536", "localhost:-1"])
def test_a_port_that_is_none_is_one_line(capsys, listen):
    assert server.main(["no.npz", "--listen", listen]) == 2
    what = f"--listen: {listen!r} has no port of 0 to 65535; give [HOST:]PORT"
    assert capsys.readouterr().err == f"jaxal.deploy.teacher: error: {what}\n"


def test_an_address_that_is_taken_is_one_line(model, capsys):
    with socket.create_server(("127.0.0.1", 0)) as other:
        assert server.main([str(model), "--listen", "{}:{}".format(*other.getsockname())]) == 2
    error = capsys.readouterr().err
    assert error.startswith("jaxal.deploy.teacher: error: [Errno") and "in use" in error and error.count("\n") == 1


def test_over_pipes_the_reason_is_the_only_message(tmp_path):
    """What libraries print goes to standard error: it must not be taken for an answer."""
    (tmp_path / "part.py").write_text("print('hello')\n")
    words = [sys.executable, "-m", "jaxal.deploy.teacher", "no.npz", "--part", str(tmp_path / "part.py")]
    pipe = subprocess.PIPE
    with subprocess.Popen(words, stdin=pipe, stdout=pipe, stderr=pipe) as process:
        assert process.stdout and process.stderr
        with Connection(os.dup(process.stdout.fileno()), writable=False) as source:
            assert unpacked(source.recv_bytes()) == "no.npz: there is no such model file or run folder"
        assert process.wait(30.0) == 0 and process.stdout.read() == b"" and process.stderr.read() == b"hello\n"


# ---------------------------------------------------------------- strange teachers

HELLO = packed([server.FORMAT, "0" * 64, [1, 6, 8], [[0, 0]], "jaxal 0"])


@pytest.fixture
def answering():
    """Starts a server that says these messages to each who connects, the first at once, each other for a message."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def start(*conversations: list[bytes]) -> str:
            def serve() -> None:
                for messages in conversations:
                    client, _ = listener.accept()
                    with Connection(client.detach()) as connection:
                        for number, message in enumerate(messages):
                            if number:
                                connection.recv_bytes()
                            connection.send_bytes(message)
                        with contextlib.suppress(EOFError, OSError):
                            connection.recv_bytes()  # until the other end has enough

            threading.Thread(target=serve, daemon=True).start()
            return f"127.0.0.1:{listener.getsockname()[1]}"

        yield start


GOOD = packed(Result(-1.0, np.ones((9, 3)), np.zeros((3, 3)), True, "", 0.0))


def test_half_an_answer_fails_one_label_and_the_next_has_a_line_of_its_own(answering):
    backend = teacher(address=answering([HELLO], [HELLO, b"\xc1"], [HELLO, GOOD]))
    failed = backend.calculate(ETHANOL)
    assert not failed.ok and "\n" not in failed.reason and failed.reason
    result = backend.calculate(ETHANOL)
    assert result.ok and result.energy == -1.0, result.reason
    assert np.isnan(result.stress).all()  # whatever it says of a structure that does not repeat


@pytest.mark.parametrize(
    ("greeting", "message"),
    [
        (packed("model.npz: damaged"), r"^label\.model: model\.npz: damaged$"),
        (packed([server.FORMAT + 1, "0", [1], [[0, 0]], ""]), r"^label\.address: what answers is no teacher of this"),
        (packed([server.FORMAT]), r"^label\.address: what answers is no teacher of this version of jaxal$"),
        (packed(7), r"^label\.address: what answers is no teacher of this version of jaxal$"),
        (b"\xc1", r"^label\.address: what answers did not start: "),
    ],
)
def test_a_greeting_of_something_else_is_one_line(answering, greeting, message):
    with pytest.raises(LabelError, match=message) as error:
        teacher(address=answering([greeting]))
    assert "\n" not in str(error.value)


def test_one_that_says_nothing_is_not_waited_for(monkeypatch):
    monkeypatch.setattr("jaxal.label.methods.teacher.CONNECTING", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(LabelError, match=r"^label\.address: what answers said nothing in 0\.1 s$"):
            teacher(address=address)


def test_an_interpreter_that_cannot_be_started_is_named(model, tmp_path):
    (tmp_path / "python").write_bytes(b"\x00\x01")
    (tmp_path / "python").chmod(0o755)
    backend = teacher(model=model, python=[str(tmp_path / "python")])
    with pytest.raises(LabelError, match=rf"^label\.python: cannot start {tmp_path}/python \(Exec format error\)$"):
        backend.check(ETHANOL)


def test_an_interpreter_that_ends_at_once_says_why(model, tmp_path):
    (tmp_path / "python").write_text("#!/bin/sh\necho first >&2; echo no license >&2; exit 3\n")
    (tmp_path / "python").chmod(0o755)
    backend = teacher(model=model, python=[str(tmp_path / "python")])
    why = r"the teacher died \(exit status 3\): no license"
    with pytest.raises(LabelError, match=rf"^label\.python: the teacher did not start: {why}$"):
        backend.check(ETHANOL)
    assert re.search(why, backend.calculate(ETHANOL).reason)
