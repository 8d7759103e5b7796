"""What a config determines: the functions and shapes that the loop runs on."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax

from nca_jax.batch import Batch, Vocab
from nca_jax.train.step import TrainState
from nca_jax.train.timetable import Timetable


@dataclasses.dataclass(frozen=True)
class Program:
    """A run without its state. `nca_jax.run.build` makes it."""

    mesh: jax.sharding.Mesh
    vocab: Vocab
    timetable: Timetable
    # Shapes, dtypes and shardings of the train state.
    abstract: TrainState
    init: Callable[[], TrainState]
    train_step: Callable[[TrainState, Batch], tuple[TrainState, dict]]
    # None where the run only evaluates.
    stream: Callable[[int], Batch] | None
    # The first one's loss (or score) is the run's result.
    evaluators: dict[str, Callable[[Any, int], dict]]
    # Learning rate by update, for the log.
    schedule: Callable[[int], float]
    # FLOPs that the model needs for one update.
    flops: float
    # Hashes of what the streams read, for the manifest.
    data: dict[str, Any]
