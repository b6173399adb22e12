"""Compares architectures on a synthetic world with known features, at equal numbers of rows."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mechstudy.core.errors import MechstudyError, nearest
from mechstudy.core.progress import NullProgress, Progress
from mechstudy.dictionaries.config import DictionaryConfig, Precision, TrainConfig
from mechstudy.dictionaries.dictionary import Dictionary
from mechstudy.dictionaries.evaluation.stability import compare_all
from mechstudy.dictionaries.evaluation.synthetic import SyntheticWorld, WorldConfig, score
from mechstudy.dictionaries.training.trainer import train

_SEEDS_APART = 1_000_003  # keeps the seeds of trainings of different worlds apart

CONTENDERS: Mapping[str, Mapping[str, Any]] = {
    "topk": {"activation": "topk"},
    "batchtopk": {"activation": "batchtopk"},
    "matryoshka": {"activation": "batchtopk", "matryoshka": True},
    "jumprelu": {"activation": "jumprelu"},
    "jumprelu-tanh": {"activation": "jumprelu", "penalty": "tanh"},
    "gated": {"activation": "gated"},
    "relu": {"activation": "relu"},
    "relu-tanh": {"activation": "relu", "penalty": "tanh"},
}


def synthetic(
    world_cfg: WorldConfig,
    names: Sequence[str] = (),
    *,
    k: int | None = None,
    width: int | None = None,
    steps: int = 2_000,
    batch_size: int = 1_024,
    seeds: Sequence[int] = (0,),
    trainings: int = 1,
    precision: Precision = "float32",
    progress: Progress | None = None,
) -> Iterator[dict[str, Any]]:
    """One row per world, architecture and training.

    Args:
        world_cfg: the world; its seed plus each of `seeds` is a world.
        names: keys of `CONTENDERS`; all if empty.
        k: target sparsity of every dictionary; the world's L0 if None.
        width: features of a dictionary; as many as the world has if None.
        steps: of each training.
        batch_size: of each training.
        seeds: of the worlds.
        trainings: of each architecture on each world, from different initial weights and the same rows.
        precision: of each training.
        progress: receives progress.

    Yields:
        architecture, seed (of the world), training (its number), seconds, and the scores of `synthetic.score`. The last
        of several trainings also has `stability`, `stability.compare_all` all of them.

    Raises:
        MechstudyError: an unknown architecture.
    """
    for name in names:
        if name not in CONTENDERS:
            raise MechstudyError(
                f"there is no contender {name!r}",
                facts={"contenders": ", ".join(CONTENDERS)},
                fix=nearest(name, CONTENDERS),
            )
    for seed in seeds:
        world = SyntheticWorld(world_cfg.model_copy(update={"seed": world_cfg.seed + seed}), batch_size)
        for name in names or CONTENDERS:
            cfg = DictionaryConfig(
                kind="sae", d_sae=width or world_cfg.n_features, k=k or round(world_cfg.l0), **CONTENDERS[name]
            )
            trained: list[Dictionary] = []
            for number in range(trainings):
                recipe = TrainConfig(steps=steps, batch_size=batch_size, seed=seed + number * _SEEDS_APART,
                                     precision=precision, tensorboard=False)  # fmt: skip
                began = time.perf_counter()
                dictionary = train(cfg, recipe, world, progress=progress or NullProgress())
                assert isinstance(dictionary, Dictionary)
                trained.append(dictionary)
                row = {"architecture": name, "seed": seed, "training": number, "seconds": time.perf_counter() - began}
                row |= score(trained[-1], world)
                yield row | ({"stability": compare_all(trained)} if 1 < trainings == len(trained) else {})
