"""Train by mechstudy's `train`, every number at its default. Argument: a task file."""

from collections.abc import Iterator

from common import Batches, Clock, Task, answer
from torch import Tensor

from mechstudy.dictionaries.config import DictionaryConfig, TrainConfig
from mechstudy.dictionaries.training.trainer import train


class Source(Batches):
    """The rows as a `train.RowSource`."""

    def batches(self, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        for x in self.at(start):
            yield x, x


task = Task.from_arguments()
activation = "topk" if task.architecture == "topk" else "batchtopk"
cfg = DictionaryConfig(
    kind="sae", activation=activation, d_sae=task.n_features, k=task.k, matryoshka=task.architecture == "matryoshka"
)
recipe = TrainConfig(
    steps=task.steps, batch_size=task.batch, precision=task.precision, seed=task.seed, tensorboard=False
)
source = Source(task.rows(), task.batch)
clock = Clock()
sae = train(cfg, recipe, source, site_in=task.site)
seconds = clock.seconds()
sae.save(task.folder)


def reconstruct(x: Tensor) -> tuple[Tensor, Tensor]:
    f = sae.encode(x)
    return sae.decode(f), f > 0


answer(task, seconds, reconstruct, lr=recipe.resolved_lr(task.n_features))
