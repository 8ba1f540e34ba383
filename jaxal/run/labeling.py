"""Where the labels of a run come from: a host method behind a service, or a closed form in the program."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool

from jaxal.committee import evaluation as committees
from jaxal.config.schema import Config
from jaxal.core.types import Label, Structure
from jaxal.data import neighbors
from jaxal.data.structure import Table
from jaxal.label.service import Service, label_service
from jaxal.label.workers.executor import Executor, Setting
from jaxal.label.workers.executor import Recipe as LabelRecipe
from jaxal.program.callback import host_label

Opener = Callable[[LabelRecipe, float | None], Executor]  # of an executor, for a labeler and a time limit in s


LabelFunction = Callable[[Structure, Bool[Array, "k"]], Label]


def executor_of(config: Config, directory: Path) -> Opener:
    """What opens the executor of a run, whose folder is `directory`, for a labeler and a time limit in seconds."""

    def opened(recipe: LabelRecipe, timeout: float | None) -> Executor:
        return config.executor.bind()()(Setting(recipe, timeout, config.label.workers, directory))

    return opened


def recipe_of(config: Config) -> LabelRecipe:
    """The host method of a run."""
    return LabelRecipe(config.label.part.name, dict(config.label.part.options))


def open_service(
    config: Config,
    table: Table,
    store: Path,
    reference: np.ndarray,
    enough: Callable[[], bool] = lambda: False,
    opener: Opener | None = None,
    retry_failed: bool = False,
    recipe: LabelRecipe | None = None,
) -> Service:
    """The labels of a host method, relative to `reference` (eV per species), kept in `store`, until `enough()`.

    `opener` opens the executor; by default it is one of its own, which writes into the folder of the store. With
    `retry_failed` what the store remembers as failed is calculated again. `recipe` is the labeler, by default that of
    the configuration.
    """
    return label_service(
        recipe or recipe_of(config),
        table=table,
        store=store,
        reference=reference,
        executor=opener or executor_of(config, store.parent),
        timeout=config.label.timeout,
        max_force=config.label.max_force,
        net_force=config.label.net_force,
        enough=enough,
        retry_failed=retry_failed,
    )


def oracle_label(
    config: Config, table: Table, dtype: Any, reference: np.ndarray, spec: neighbors.Spec
) -> LabelFunction:
    """The labels of a closed form in JAX, as a function of the program, without a callback."""
    oracle = config.label.part.bind()(table)
    offset = jnp.asarray(reference, dtype)
    cap = config.label.max_force

    def label(structures: Structure, wanted: Bool[Array, "k"]) -> Label:
        near = neighbors.find(spec, structures)
        energy, force, stress, _ = committees.evaluate_batch(oracle, {}, structures, near)
        real = structures.species >= 0
        energy = energy - jnp.sum(jnp.where(real, offset[structures.species], 0.0), axis=-1)
        largest = jnp.max(jnp.linalg.norm(force, axis=-1), axis=-1)
        ok = wanted & jnp.isfinite(energy) & (largest <= cap) & ~near.overflow
        return Label(energy, force, stress, ok)

    return label


def oracle_spec(config: Config, table: Table, structures: Structure) -> neighbors.Spec:
    """Neighbors of the closed form, with ample room: an overflow there would fail labels.

    A crystal gains neighbors when it melts or is compressed: twice those within one more angstrom are provided for.
    """
    cutoff = config.label.part.bind()(table).cutoff
    return neighbors.plan(structures, cutoff, 1.0, 2.0)._replace(skin=0.0, close=0)


def host_label_of(label: Callable[..., Any], mesh: Mesh | None) -> LabelFunction:
    """The labels of a service as a function of the program: one callback."""
    return lambda structures, wanted: host_label(label, structures, wanted, mesh)
