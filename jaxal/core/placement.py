"""For which kind of device programs are made: the one there is, or one that is not here and only compiled for.

What is fast differs: a CPU has caches and few cores, an accelerator is the faster the more it is given at once.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple

import jax


class Placement(NamedTuple):
    """A kind of device."""

    platform: str  # cpu, gpu or tpu

    @property
    def cpu(self) -> bool:
        """Whether members, blocks and seeds go one after the other, within a cache."""
        return self.platform == "cpu"


_elsewhere: ContextVar[Placement | None] = ContextVar("placement", default=None)


def placement() -> Placement:
    """Where what is traced now will run."""
    return _elsewhere.get() or Placement(jax.default_backend())


@contextmanager
def compiled_for(platform: str) -> Iterator[None]:
    """What is traced inside is for this platform. Programs that were traced before are not traced again."""
    token = _elsewhere.set(Placement(platform))
    try:
        yield
    finally:
        _elsewhere.reset(token)
