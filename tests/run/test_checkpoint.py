"""Checkpoints come back bit for bit, and a damaged one is passed over."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxal.core.jaxmd import simulate
from jaxal.core.types import InputError
from jaxal.run import checkpoint


class Buffer(NamedTuple):
    rows: jax.Array
    count: jax.Array


def example(capacity: int = 4, seed: int = 0):
    """A state with everything a run has: keys, optax and jax-md states, odd dtypes, an empty array."""
    keys = jax.random.split(jax.random.key(seed), 3)
    params = {"dense": {"w": jax.random.normal(keys[0], (5, 3)), "b": jnp.full(3, jnp.nan)}}
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(optax.constant_schedule(1e-3)))
    init, _ = simulate.nvt_langevin(lambda r, **_: jnp.zeros_like(r), lambda r, dr, **_: r + dr, 0.1, 0.5)
    engine = init(keys[1], jax.random.normal(keys[2], (7, 3)), mass=2.0)
    return {
        "params": params,
        "optimizer": optimizer.init(params),
        "engine": engine,
        "keys": keys,
        "buffer": Buffer(jnp.arange(3.0 * capacity).reshape(capacity, 3) / 7, jnp.int32(2)),
        "empty": jnp.zeros((0, 3)),
        "half": jnp.asarray([1.5, -0.0, jnp.inf], jnp.bfloat16),
        "flags": (jnp.array([True, False]), np.arange(3, dtype=np.int64), None, 7, 0.1),
    }


def bits(leaf) -> tuple:
    if hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return str(jax.random.key_impl(leaf)), *bits(jax.random.key_data(leaf))
    array = np.asarray(leaf)
    return array.dtype, array.shape, array.tobytes()


def assert_same(a, b) -> None:
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for leaf, other in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert bits(leaf) == bits(other)
        assert isinstance(leaf, jax.Array) == isinstance(other, jax.Array)


def test_round_trip_is_bit_for_bit(tmp_path):
    state, host = example(), {"labels": 12, "elapsed": 0.1 + 0.2, "phase": "explore", "history": [1, 2.5, None]}
    checkpoint.save(tmp_path, 3, state, host)
    copy, remembered, step = checkpoint.restore(tmp_path, example(seed=1))
    assert_same(copy, state)
    assert remembered == host and step == 3
    # The keys draw the same numbers, and the structure is fit for a program that donates it.
    draw = jax.vmap(jax.random.normal)
    assert np.array_equal(draw(copy["keys"]), draw(state["keys"]))
    advance = jax.jit(lambda s: jax.tree.map(lambda x: x * 2, s), donate_argnums=0)
    assert np.array_equal(advance(copy["buffer"]).rows, 2 * state["buffer"].rows)


def test_structure_from_like_shapes_from_disk(tmp_path):
    state = example(capacity=64)
    checkpoint.save(tmp_path, 0, state, {})
    assert_same(checkpoint.restore(tmp_path, example(capacity=4))[0], state)
    abstract = jax.eval_shape(lambda: {k: v for k, v in example().items() if k != "flags"})
    checkpoint.save(tmp_path, 1, {k: v for k, v in state.items() if k != "flags"}, {})
    copy, _, _ = checkpoint.restore(tmp_path, abstract)
    assert copy["buffer"].rows.shape == (64, 3) and isinstance(copy["buffer"], Buffer)


def test_another_state_is_refused(tmp_path):
    checkpoint.save(tmp_path, 0, {"a": jnp.zeros(3), "key": jax.random.key(0)}, {})
    key = jax.random.key(0)
    with pytest.raises(InputError, match=r"\['b'\]"):
        checkpoint.restore(tmp_path, {"a": jnp.zeros(3), "b": jnp.zeros(2), "key": key})
    with pytest.raises(InputError, match=r"\['a'\] is float32, here it is int32"):
        checkpoint.restore(tmp_path, {"a": jnp.zeros(3, int), "key": key})
    with pytest.raises(InputError, match=r"\['key'\]"):
        checkpoint.restore(tmp_path, {"a": jnp.zeros(3), "key": jnp.zeros(2, jnp.uint32)})


def test_the_last_two_are_kept_and_a_dropped_future_is_removed(tmp_path):
    assert checkpoint.latest(tmp_path / "none") is None
    for step in (1, 2, 10, 9):  # 9 after 10: the run went back
        checkpoint.save(tmp_path, step, {"a": jnp.full(2, float(step))}, {})
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["2", "9"]
    assert checkpoint.latest(tmp_path) == 9
    checkpoint.save(tmp_path, 9, {"a": jnp.full(2, -1.0)}, {})  # the same number again replaces it
    state, _, step = checkpoint.restore(tmp_path, {"a": jnp.zeros(2)})
    assert step == 9 and state["a"][0] == -1.0


def damage(path, how: str) -> None:
    files = sorted((f for f in path.rglob("*") if f.is_file()), key=lambda f: f.stat().st_size)
    if how == "truncated":
        for file in files:
            os.truncate(file, file.stat().st_size // 2)
    elif how == "largest truncated":
        os.truncate(files[-1], files[-1].stat().st_size // 2)
    elif how == "a bit flipped":
        data = bytearray(files[-1].read_bytes())
        data[len(data) // 2] ^= 1
        files[-1].write_bytes(data)
    elif how == "emptied":
        for file in files:
            file.unlink()
    elif how == "record edited":
        record = next(path.rglob("record/metadata"))
        record.write_text(record.read_text().replace('"n": 2', '"n": 3'))


@pytest.mark.parametrize("how", ["truncated", "largest truncated", "a bit flipped", "emptied", "record edited"])
def test_a_damaged_checkpoint_falls_back_to_the_one_before(tmp_path, how):
    state = {"a": jax.random.normal(jax.random.key(0), (50, 50))}
    checkpoint.save(tmp_path, 1, state, {"n": 1})
    checkpoint.save(tmp_path, 2, jax.tree.map(lambda x: x + 1, state), {"n": 2})
    damage(tmp_path / "2", how)
    with pytest.warns(UserWarning, match="damaged"):
        copy, host, step = checkpoint.restore(tmp_path, state)
    assert_same(copy, state)
    assert (host, step) == ({"n": 1}, 1)
    damage(tmp_path / "1", "truncated")
    with pytest.warns(UserWarning), pytest.raises(InputError, match="no whole checkpoint"):
        checkpoint.restore(tmp_path, state)


@pytest.mark.parametrize(
    ("number", "words"),
    [(99, r"a newer jaxal \(checkpoint format 99\)"), (None, r"an older jaxal \(no checkpoint format\)")],
)
def test_a_checkpoint_of_another_format_is_refused_in_words(tmp_path, monkeypatch, number, words):
    checkpoint.save(tmp_path, 1, {"a": jnp.zeros(3)}, {})
    monkeypatch.setattr(checkpoint, "FORMAT", number)
    checkpoint.save(tmp_path, 2, {"a": jnp.zeros(3)}, {})
    monkeypatch.undo()
    with pytest.raises(InputError, match=rf"2: written by {words}; this one reads format {checkpoint.FORMAT}"):
        checkpoint.restore(tmp_path, {"a": jnp.zeros(3)})


def test_no_checkpoint_is_an_input_error(tmp_path):
    with pytest.raises(InputError, match="there is none"):
        checkpoint.restore(tmp_path / "none", {})


def test_a_run_killed_while_it_saves_leaves_a_whole_checkpoint(tmp_path):
    program = f"""
        import jax.numpy as jnp
        from jaxal.run import checkpoint
        for step in range(1, 10_000):
            checkpoint.save({str(tmp_path)!r}, step, {{"a": jnp.full((300, 300), step)}}, {{"step": step}})
            print(step, flush=True)
    """
    child = subprocess.Popen([sys.executable, "-c", textwrap.dedent(program)], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    for _ in range(3):
        child.stdout.readline()
    time.sleep(0.03)  # into the next save
    child.send_signal(signal.SIGKILL)
    last = int((child.stdout.read().split() or ["3"])[-1])
    child.wait()
    state, host, step = checkpoint.restore(tmp_path, {"a": jnp.zeros((300, 300), int)})
    assert step in (last, last + 1) and host == {"step": step} and bool(jnp.all(state["a"] == step))
    checkpoint.save(tmp_path, step + 1, state, host)  # what was half written is swept up
    assert not list(tmp_path.glob("*tmp*"))


def test_saving_does_not_hold_up_a_run(tmp_path):
    # A run of four members of about 50 000 parameters with an optimizer, some 4 MB in 200 leaves, once a minute.
    state = [jnp.ones((100, 50)) for _ in range(200)]
    checkpoint.save(tmp_path, 0, state, {})
    start = time.perf_counter()
    checkpoint.save(tmp_path, 1, state, {})
    assert time.perf_counter() - start < 2.0


def test_a_disk_that_refuses_is_told_in_one_line_and_the_checkpoint_before_stands(tmp_path):
    program = f"""
import resource
import numpy as np
from jaxal.run import checkpoint
from jaxal.core.types import InputError

checkpoint.save({str(tmp_path)!r}, 1, {{"x": np.arange(10.0)}}, {{}})
resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))  # bytes in a file
try:
    checkpoint.save({str(tmp_path)!r}, 2, {{"x": np.random.default_rng(0).normal(size=100_000)}}, {{}})
except InputError as error:
    print(error)
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert result.returncode == 0 and not result.stderr, result.stderr
    assert result.stdout.strip() == f"{tmp_path}: checkpoint 2 cannot be written: File too large; the one before stands"
    assert checkpoint.restore(tmp_path, {"x": np.zeros(10)})[2] == 1


def test_what_cannot_be_written_leaves_the_checkpoint_before(tmp_path):
    checkpoint.save(tmp_path, 1, {"x": np.arange(3.0)}, {"n": 1})
    with pytest.raises(InputError, match=rf"^{tmp_path}: checkpoint 2 cannot be written: .*; the one before stands$"):
        checkpoint.save(tmp_path, 2, {"x": np.array(["text"])}, {})
    _, host, step = checkpoint.restore(tmp_path, {"x": np.zeros(3)})
    assert (host, step) == ({"n": 1}, 1)


def test_what_a_kill_has_left_half_written_is_swept_up(tmp_path):
    left = tmp_path / f"1{checkpoint._TEMPORARY}-7"
    left.mkdir()
    (left / "array").write_text("half")
    checkpoint.save(tmp_path, 2, {"x": np.arange(3.0)}, {})
    assert [entry.name for entry in tmp_path.iterdir()] == ["2"]


def test_without_its_sums_a_checkpoint_is_known_by_its_contents(tmp_path):
    """They are written last: a kill may come between."""
    checkpoint.save(tmp_path, 2, {"x": np.arange(3.0)}, {"n": 2})
    (tmp_path / "2" / checkpoint._SUMS).unlink()
    assert checkpoint.restore(tmp_path, {"x": np.zeros(3)})[1] == {"n": 2}
    damage(tmp_path / "2", "record edited")
    with (
        pytest.warns(UserWarning, match="damaged"),
        pytest.raises(InputError, match="its contents are not what was written"),
    ):
        checkpoint.restore(tmp_path, {"x": np.zeros(3)})


def test_only_the_complaint_about_a_closed_loop_is_hushed(monkeypatch):
    heard = []
    monkeypatch.setattr(sys, "unraisablehook", lambda what: heard.append(str(what.exc_value)))
    checkpoint._hush_threads.__wrapped__()

    class Ends:
        def __init__(self, reason):
            self.reason = reason

        def __del__(self):
            raise RuntimeError(self.reason)

    for reason in ("Event loop is closed", "something else"):
        Ends(reason)
    assert heard == ["something else"]
