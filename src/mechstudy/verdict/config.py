"""Settings of verdicts; every field enters the artifact's id."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from mechstudy.core.config import Config

Ranking = Literal["balance", "magnitude", "support"]


class Thresholds(Config):
    """What each criterion must reach: the lower end of its interval, or the upper end where less is better."""

    sufficiency: float = Field(0.7, ge=0, le=1)
    """Share f of the behaviour that the circuit carries when only it is kept, at least."""
    necessity: float = Field(0.5, ge=0, le=1)
    """Share that is lost when only it is replaced, at least."""
    rivals: float = Field(0.25, ge=0, le=1)
    """How much f exceeds that of random circuits, at least."""
    adversary: float = Field(0.5, ge=0, le=1)
    """f when an adversary chooses which of the other nodes are replaced, at least."""
    explained: float = Field(0.5, ge=0, le=1)
    """f without the errors of dictionaries among the circuit's nodes, at least."""
    variants: float = Field(0.5, ge=0, le=1)
    """f without errors of the circuit of every other trained dictionary (`dictionaries.variants`), at least."""
    controls: float = Field(0.0, ge=0, le=1)
    """How much more it carries without errors than the circuit of every frozen dictionary
    (`dictionaries.controls`), at least."""
    stability: float = Field(0.6, ge=0, le=1)
    """Mean Jaccard index with circuits chosen on halves of the prompts, at least."""
    robustness: float = Field(0.75, ge=0, le=1)
    """Share of specifications in which sufficiency is reached, at least."""
    specificity: float = Field(0.5, ge=0, le=1)
    """Share of what the circuit does to its own behaviour that it does to any other, at most."""


class VerdictConfig(Config):
    """How a behaviour's circuit is chosen and judged (docs/explanation/verdict.md).

    Nodes are ranked on train prompts by integrated gradients over all nodes. The circuit is the smallest of MIB's
    sizes, or of some between, whose f on half of these prompts reaches ``aim``. Everything else is measured on test
    prompts.
    """

    n_discovery: int = Field(20, ge=2)
    """Train prompts on which nodes are ranked and the circuit is chosen."""
    n_samples: int = Field(16, ge=2)
    """Test prompts on which it is judged."""
    steps: int = Field(5, ge=1)
    """Points of the path of integrated gradients."""
    ranking: Ranking = "balance"
    """Order of nodes: balance (supporters and opponents, each by size), magnitude, or support (most negative effect
    first)."""
    aim: float = Field(0.9, gt=0)
    """f on train prompts that the smallest circuit must reach."""
    n_random: int = Field(5, ge=1)
    """Random circuits of equal size, kinds and layers, its rivals."""
    resamples: int = Field(200, ge=20)
    """Circuits chosen on random halves of the train prompts, for stability."""
    n_texts: int = Field(4, ge=0)
    """Documents of the corpus on which the circuit's effect on other text is measured."""
    bootstrap: int = Field(2000, ge=100)
    """Cluster resamples behind each interval."""
    ci: float = Field(0.95, gt=0, lt=1)
    """Share of the resamples that an interval holds."""
    thresholds: Thresholds = Thresholds()
    seed: int = Field(0, ge=0)
    """Seed of draws and resamples."""
