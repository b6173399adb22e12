"""A synthetic world with known features, and scores of the dictionaries trained on it.

A row is the sum of its active features' directions times their strengths, plus a constant offset. There are more
features than coordinates (superposition), rare and common ones (Zipf), some fire together (a Gaussian copula with
shared factors), and some only if their parent does (hierarchy).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float
from pydantic import Field
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from mechstudy.core.config import Config
from mechstudy.core.seeds import torch_generator
from mechstudy.dictionaries.dictionary import Dictionary
from mechstudy.dictionaries.evaluation.reconstruction import VarianceSums

_SQRT2 = 2.0**0.5


class WorldConfig(Config):
    """The world. ``l0`` is the mean number of active features of a row.

    ``children`` is the share of features that have a parent; ``correlation`` the share of the variance of a feature's
    copula variable that comes from ``factors`` shared ones; firing probabilities fall as rank^-``zipf``; strengths are
    normal with mean 1 and standard deviation ``spread``, cut at 0.
    """

    d: int = Field(128, ge=2)
    n_features: int = Field(512, ge=2)
    l0: float = Field(12.0, gt=0)
    zipf: float = Field(0.5, ge=0)
    children: float = Field(0.4, ge=0, lt=1)
    correlation: float = Field(0.2, ge=0, lt=1)
    factors: int = Field(16, ge=1)
    spread: float = Field(0.25, ge=0)
    offset: float = Field(0.5, ge=0)
    seed: int = Field(0, ge=0)


@dataclass(frozen=True)
class Sample:
    """Rows and their features: x [N, d], strengths [N, n_features] (0 where a feature is not active)."""

    x_ND: Tensor
    strengths_NG: Tensor


class SyntheticWorld:
    """Rows of a `WorldConfig`, batch by batch; a `trainer.RowSource`. The batch of a step depends on the step alone."""

    def __init__(self, cfg: WorldConfig, batch_size: int = 1024) -> None:
        self.cfg, self.batch_size = cfg, batch_size
        self.d_in = self.d_out = cfg.d
        draw = torch_generator(cfg.seed, "synthetic world", "features")
        directions = torch.randn(cfg.n_features, cfg.d, generator=draw)
        self.features_GD = directions / torch.linalg.vector_norm(directions, dim=1, keepdim=True)
        self.offset_D = cfg.offset * torch.randn(cfg.d, generator=draw)
        self.parent_G = self._parents(draw)
        self.probability_G = self._probabilities()
        loadings = torch.randn(cfg.n_features, cfg.factors, generator=draw)
        self._loadings_GC = loadings / torch.linalg.vector_norm(loadings, dim=1, keepdim=True)

    def batches(self, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Rows of steps ``start``, ``start + 1``, ..., as inputs and targets."""
        step = start
        while True:
            x = self.sample(step).x_ND
            yield x, x
            step += 1

    def sample(self, step: int, n_rows: int | None = None) -> Sample:
        """The rows of a step, with their features."""
        cfg, n = self.cfg, n_rows or self.batch_size
        draw = torch_generator(cfg.seed, "synthetic world", f"rows {step}")
        own = torch.randn(n, cfg.n_features, generator=draw)
        shared = torch.randn(n, cfg.factors, generator=draw) @ self._loadings_GC.T
        normal = (1 - cfg.correlation) ** 0.5 * own + cfg.correlation**0.5 * shared
        fires = normal > self._bound_G
        for _ in range(self._depth):  # a child needs its parent, which needs its own
            fires &= torch.where(self.parent_G >= 0, fires[:, self.parent_G], True)
        strengths = (1 + cfg.spread * torch.randn(n, cfg.n_features, generator=draw)).clamp_min(0.0) * fires
        return Sample(strengths @ self.features_GD + self.offset_D, strengths)

    def _parents(self, draw: torch.Generator) -> Tensor:
        """[G]: each feature's parent, which comes before it, or -1."""
        n = self.cfg.n_features
        has = torch.rand(n, generator=draw) < self.cfg.children
        has[0] = False
        chosen = (torch.rand(n, generator=draw) * torch.arange(n)).long()
        return torch.where(has, chosen, -1)

    def _probabilities(self) -> Tensor:
        """[G]: how often each feature fires; a child never more than .8 of its parent; the sum is about l0."""
        rank = torch.arange(1, self.cfg.n_features + 1, dtype=torch.float64)
        raw = rank**-self.cfg.zipf
        p = raw * self.cfg.l0 / raw.sum()
        for child, parent in enumerate(self.parent_G.tolist()):
            if parent >= 0:
                p[child] = min(float(p[child]), 0.8 * float(p[parent]))
        return (p * self.cfg.l0 / p.sum()).clamp_max(0.9)

    @cached_property
    def _bound_G(self) -> Tensor:
        """Features whose normal variable exceeds it fire: the quantile of P(fires | parent), without correlation."""
        conditional = self.probability_G.clone()
        has = self.parent_G >= 0
        conditional[has] = (self.probability_G[has] / self.probability_G[self.parent_G[has]]).clamp_max(0.95)
        return (_SQRT2 * torch.erfinv(1 - 2 * conditional)).float()

    @cached_property
    def _depth(self) -> int:
        depth = [0] * self.cfg.n_features
        for child, parent in enumerate(self.parent_G.tolist()):
            depth[child] = depth[parent] + 1 if parent >= 0 else 0
        return max(depth)


def mean_correlation_coefficient(decoder_FD: Float[Tensor, "f d"], features_GD: Float[Tensor, "g d"]) -> float:
    """Mean |cosine| of the best one-to-one matching of learned and true features (Hungarian algorithm), in [0, 1].

    arXiv 2505.20254. The smaller of the two sets is matched completely.
    """
    cosine = _cosines(decoder_FD, features_GD)
    rows, columns = linear_sum_assignment(cosine.numpy(), maximize=True)
    return float(cosine[rows, columns].mean())


@torch.no_grad()
def score(
    dictionary: Dictionary, world: SyntheticWorld, *, n_rows: int = 65_536, first_step: int = 10**6
) -> dict[str, Any]:
    """How well a dictionary recovers the world's features, on rows it was not trained on.

    Args:
        dictionary: trained on `world`.
        world: the world.
        n_rows: rows to score on.
        first_step: their first step, beyond those of any training.

    Returns:
        mcc; f1, precision, recall: every learned feature as a detector of the true one nearest its decoder row, means
        over learned features (one that never fires has 0); uniqueness: distinct such true features over learned ones;
        fvu, l0, dead_share; shrinkage: mean length of the reconstruction over that of the row, offset left out of both;
        true_l0.
    """
    best_F = _cosines(dictionary.W_dec, world.features_GD).argmax(1)
    hits, fired, true = (torch.zeros(dictionary.cfg.d_sae, dtype=torch.float64) for _ in range(3))
    sums, n, n_some, active, shrinkage, present = VarianceSums(), 0, 0, 0.0, 0.0, 0.0
    for step in range(first_step, first_step + -(-n_rows // world.batch_size)):
        sample = world.sample(step)
        f = dictionary.encode(sample.x_ND.to(dictionary.W_enc))
        y = dictionary.decode(f).cpu()
        on, truth = (f > 0).cpu(), (sample.strengths_NG > 0)[:, best_F]
        hits += (on & truth).sum(0)
        fired += on.sum(0)
        true += truth.sum(0)
        sums.add(sample.x_ND, y)
        active += float(on.sum())
        present += float((sample.strengths_NG > 0).sum())
        lengths = [torch.linalg.vector_norm(v - world.offset_D, dim=1) for v in (y, sample.x_ND)]
        some = lengths[1] > 1e-6  # rows without features have no length to compare with
        shrinkage += float((lengths[0][some] / lengths[1][some]).sum())
        n_some += int(some.sum())
        n += len(on)
    precision, recall = hits / fired.clamp_min(1), hits / true.clamp_min(1)
    f1 = 2 * precision * recall / (precision + recall).clamp_min(1e-12)
    return {
        "mcc": mean_correlation_coefficient(dictionary.W_dec, world.features_GD),
        "f1": float(f1.mean()),
        "precision": float(precision.mean()),
        "recall": float(recall.mean()),
        "uniqueness": len(torch.unique(best_F)) / len(best_F),
        "fvu": sums.fvu(),
        "l0": active / n,
        "true_l0": present / n,
        "dead_share": float((fired == 0).double().mean()),
        "shrinkage": shrinkage / max(1, n_some),
    }


def _cosines(a_FD: Tensor, b_GD: Tensor) -> Tensor:
    """|cosine| of every pair, [F, G] float64; a zero row has cosine 0 with everything."""
    a, b = (rows.detach().cpu().double() for rows in (a_FD, b_GD))
    a = a / torch.linalg.vector_norm(a, dim=1, keepdim=True).clamp_min(1e-30)
    b = b / torch.linalg.vector_norm(b, dim=1, keepdim=True).clamp_min(1e-30)
    cosines: Tensor = (a @ b.T).abs()
    return cosines
