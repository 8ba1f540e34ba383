"""Structures that wait for a label, on the device: fixed capacity, the most uncertain stay.

A run that does not wait for its labels keeps here what the gate has flagged. Every row has a ticket, a number that is
never used twice; the host takes rows by their tickets and marks as `sent` those whose calculation has begun. When the
queue is full a new row takes the place of a less uncertain one that has not been sent, or is not taken in.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxal.core.types import Structure


class Queue(NamedTuple):
    """Waiting structures [q]; a row with ticket -1 is free, and free rows come last."""

    structure: Structure
    score: Float[Array, "q"]  # by the newest committee
    probe: Bool[Array, "q"]  # labeled whatever the committee says, and never trained on
    walker: Int[Array, "q"]  # that came upon it
    ticket: Int[Array, "q"]
    sent: Bool[Array, "q"]  # its calculation has begun
    arm: Int[Array, "q"]  # of the schedule, that picked it; -1 = none
    next: Int[Array, ""]  # ticket of the next row


@partial(jax.jit, static_argnums=1, inline=True)  # one program where it is called outside of one
def init(example: Structure, capacity: int) -> Queue:
    """An empty queue for structures like `example` (unbatched; its number of atoms and dtype are kept)."""
    empty = jax.tree.map(lambda x: jnp.zeros((capacity, *x.shape), x.dtype), example)
    return Queue(
        structure=empty._replace(species=jnp.full((capacity, *example.species.shape), -1, jnp.int32)),
        score=jnp.zeros(capacity, example.position.dtype),
        probe=jnp.zeros(capacity, bool),
        walker=jnp.full(capacity, -1, jnp.int32),
        ticket=jnp.full(capacity, -1, jnp.int32),
        sent=jnp.zeros(capacity, bool),
        arm=jnp.full(capacity, -1, jnp.int32),
        next=jnp.zeros((), jnp.int32),
    )


def waits(queue: Queue) -> Bool[Array, "q"]:
    """Rows whose calculation has not begun."""
    return (queue.ticket >= 0) & ~queue.sent


def push(
    queue: Queue,
    structures: Structure,
    score: Float[Array, "k"],
    probe: Bool[Array, "k"],
    walker: Int[Array, "k"],
    wanted: Bool[Array, "k"],
    arm: Int[Array, "k"] | None = None,
) -> Queue:
    """Takes in the wanted of k structures; where room lacks, probes come before others, then the larger score.

    Of equals the older stays. Every wanted structure uses up a ticket, taken in or not.
    """
    ticket = jnp.where(wanted, queue.next + jnp.cumsum(wanted, dtype=jnp.int32) - 1, -1)
    arm = jnp.full(wanted.shape, -1, jnp.int32) if arm is None else arm
    sent = jnp.zeros(wanted.shape, bool)
    new = Queue(structures, score, probe, walker.astype(jnp.int32), ticket, sent, arm, queue.next)
    both = jax.tree.map(lambda old, more: jnp.concatenate([old, more]), _rows(queue), _rows(new))
    # the last key counts first
    order = jnp.lexsort((both.ticket, -both.score, ~both.probe, ~both.sent, both.ticket < 0))
    kept = jax.tree.map(lambda x: x[order[: queue.ticket.shape[0]]], both)
    return kept._replace(next=queue.next + jnp.sum(wanted, dtype=jnp.int32))


def keep(queue: Queue, rows: Bool[Array, "q"]) -> Queue:
    """Only the chosen rows, in their order; the others are free."""
    ticket = jnp.where(rows, queue.ticket, -1)
    order = jnp.argsort(ticket < 0, stable=True)
    kept = _rows(queue._replace(ticket=ticket, sent=queue.sent & rows))
    return jax.tree.map(lambda x: x[order], kept)._replace(next=queue.next)


def holds(queue: Queue, tickets: Int[Array, "a"]) -> Bool[Array, "q"]:
    """Rows with one of the tickets."""
    return jnp.any(queue.ticket[:, None] == tickets[None, :], axis=1) & (queue.ticket >= 0)


def arm_of(queue: Queue, tickets: Int[Array, "a"]) -> Int[Array, "a"]:
    """The arm that picked the row of each ticket, -1 where there is no such row."""
    same = (tickets[:, None] == queue.ticket[None, :]) & (tickets >= 0)[:, None]
    return jnp.max(jnp.where(same, queue.arm[None, :], -1), axis=1, initial=-1)


def _rows(queue: Queue) -> Queue:
    """What has a leading axis [q]; the counter, which has none, is left out."""
    return queue._replace(next=())  # pyright: ignore[reportArgumentType]
