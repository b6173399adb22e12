"""Settings of verdicts; every field enters the artifact's id."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from mechstudy.core.config import Config

Ranking = Literal["balance", "magnitude", "support"]


class Thresholds(Config):
    """What each criterion must reach: the lower end of its interval, or the upper end where less is better.

    ``sufficiency``: the share f of the behaviour that the circuit carries when only it is kept. ``necessity``: the
    share that is lost when only it is replaced. ``rivals``: by how much f exceeds that of random circuits.
    ``adversary``: f when an adversary chooses which of the other nodes are replaced. ``explained``: f without the
    errors of dictionaries that are among the circuit's nodes. ``stability``: mean Jaccard index
    of circuits chosen on resampled prompts with the circuit. ``robustness``: the share of specifications in which
    ``sufficiency`` is reached. ``specificity``: at most this share of what the circuit does to its own behaviour is
    done to any other.
    """

    sufficiency: float = Field(0.7, ge=0, le=1)
    necessity: float = Field(0.5, ge=0, le=1)
    rivals: float = Field(0.25, ge=0, le=1)
    adversary: float = Field(0.5, ge=0, le=1)
    explained: float = Field(0.5, ge=0, le=1)
    stability: float = Field(0.6, ge=0, le=1)
    robustness: float = Field(0.75, ge=0, le=1)
    specificity: float = Field(0.5, ge=0, le=1)


class VerdictConfig(Config):
    """How a behaviour's circuit is chosen and judged.

    Nodes are ranked on ``n_discovery`` train prompts by integrated gradients of ``steps`` points over all nodes. The
    circuit is the smallest of MIB's sizes, or of some between, whose f on half of these reaches ``aim``. Everything
    else is measured on ``n_samples`` test prompts. ``ranking``: as `circuits.ranked`. ``n_random`` random circuits of
    equal size, kinds and layers are its rivals; ``resamples`` circuits are chosen on resampled prompts. ``n_texts``
    documents of the corpus show what replacing it does to other text. Intervals hold the share ``ci`` of ``bootstrap``
    cluster resamples.
    """

    n_discovery: int = Field(20, ge=2)
    n_samples: int = Field(16, ge=2)
    steps: int = Field(5, ge=1)
    ranking: Ranking = "balance"
    aim: float = Field(0.9, gt=0)
    n_random: int = Field(5, ge=1)
    resamples: int = Field(200, ge=20)
    n_texts: int = Field(4, ge=0)
    bootstrap: int = Field(2000, ge=100)
    ci: float = Field(0.95, gt=0, lt=1)
    thresholds: Thresholds = Thresholds()
    seed: int = Field(0, ge=0)
