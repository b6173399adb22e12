"""`mechstudy bench synthetic`: which architecture finds the features of a known world, at equal samples."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mechstudy.core.errors import MechstudyError, nearest
from mechstudy.core.progress import NullProgress, Progress
from mechstudy.dictionaries.config import DictionaryConfig, TrainConfig
from mechstudy.dictionaries.dictionary import Dictionary
from mechstudy.dictionaries.evaluation.stability import between
from mechstudy.dictionaries.evaluation.synthetic import SyntheticWorld, WorldConfig, score
from mechstudy.dictionaries.training.trainer import train

_SEEDS_APART = 1_000_003  # a world's second training has no other world's first seed

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
    precision: str = "float32",
    progress: Progress | None = None,
) -> Iterator[dict[str, Any]]:
    """One row per world, architecture and training: architecture, seed (of the world), training (its number), seconds,
    and what `synthetic.score` says. The last of several trainings also has `stability`, what `stability.between` them
    says: they read the same rows and differ in what they start from.

    Args:
        k: the sparsity asked of all of them; the world's L0 if None.
        width: latents; as many as there are features if None.

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
                                     precision=precision, tensorboard=False)  # type: ignore[arg-type]  # checked by the config # fmt: skip
                began = time.perf_counter()
                trained.append(train(cfg, recipe, world, progress=progress or NullProgress()))
                row = {"architecture": name, "seed": seed, "training": number, "seconds": time.perf_counter() - began}
                row |= score(trained[-1], world)
                yield row | ({"stability": between(trained)} if 1 < trainings == len(trained) else {})
