"""The one place where the compiled program asks the host: labels by one `io_callback`."""

import logging
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import io_callback
from jax.sharding import Mesh
from jaxtyping import Array, Bool

from jaxal.core import devices
from jaxal.core.types import Label, Structure
from jaxal.label.service import Batch, Labels


def host_label(
    label: Callable[[Batch, np.ndarray], Labels],
    structures: Structure,
    wanted: Bool[Array, "k"],
    mesh: Mesh | None = None,
) -> Label:
    """Labels of the wanted among k structures; the others, and those that fail, come back with `ok=False`.

    `label` is `Service.label`. Call it under jit (in a `lax.cond` that is rarely taken), never under vmap or
    grad. Energies, forces and stress have the dtype of the positions. It never raises: an exception of `label`
    is logged and fails the whole batch, for one that went through XLA would end the run.

    On a mesh the first device asks, in the process that holds it, and the others wait. JAX orders callbacks on one
    device only; there every label feeds the next look, which is order enough.
    """
    k, n = structures.species.shape
    dtype = np.dtype(structures.position.dtype)
    shapes = Label._make(
        (
            jax.ShapeDtypeStruct((k,), dtype),
            jax.ShapeDtypeStruct((k, n, 3), dtype),
            jax.ShapeDtypeStruct((k, 3, 3), dtype),
            jax.ShapeDtypeStruct((k,), np.dtype(bool)),
        )
    )

    def on_host(structures: Any, wanted: Any) -> Label:
        # Arguments arrive as arrays on the CPU; as numpy arrays they are out of JAX's reach before any work is
        # done (a JAX operation in here can deadlock, jax-ml/jax#24255).
        batch: Any = Structure._make(map(np.asarray, structures))
        mask = np.asarray(wanted)
        try:
            answer = label(batch, mask)
            parts = [np.asarray(part, shape.dtype) for part, shape in zip(answer, shapes, strict=True)]
            for part, shape in zip(parts, shapes, strict=True):
                if part.shape != shape.shape:
                    raise ValueError(f"the labeler answered with shape {part.shape}, needed is {shape.shape}")
            return Label._make(parts)
        except Exception:
            logging.getLogger(__name__).exception("labeling failed")
            return Label._make(np.zeros(shape.shape, shape.dtype) for shape in shapes)

    if mesh is None:
        return io_callback(on_host, shapes, structures, wanted, ordered=True)

    def ask(structures: Structure, wanted: Bool[Array, "k"]) -> Label:
        return io_callback(on_host, shapes, structures, wanted, ordered=False)

    return devices.once(mesh, ask, shapes, structures, wanted)
