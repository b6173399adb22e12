"""Settings of interventions; every field enters the artifact's id."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from mechstudy.core.config import Config

Kind = Literal["ablation", "resampling", "patching", "steering", "edges"]
Ablation = Literal["zero", "mean"]
RankBy = Literal["contrast", "mean", "zero", "live_effect", "total_effect"]


class PatchingConfig(Config):
    """The grid of layers x named positions into which the corrupted prompt's activations are written."""

    site: Literal["resid_post", "mlp_out", "attn_out"] = "resid_post"
    """Site whose activations are patched."""
    layers: str | tuple[int, ...] = "all"
    """Layers of the grid: `all`, `10-24`, `3,5,8-10` or a list."""
    n_pairs: int = Field(default=50, ge=1)
    """Test pairs of each cell."""


class InterventionConfig(Config):
    """Interventions on one behaviour's circuit.

    Groups are ranked on train prompts, and measured on test prompts. Sources of edges are replaced as ``rank_by``
    replaces features, else set to zero.
    """

    kinds: tuple[Kind, ...] = ("ablation", "resampling", "patching", "steering", "edges")
    """Kinds of interventions."""
    n_samples: int = Field(100, ge=1)
    """Test prompts on which effects are measured."""
    n_discovery: int = Field(100, ge=1)
    """Train prompts that give means, donors and matched controls."""
    n_groups: int = Field(10, ge=1)
    """Groups of features, in the order of their rank."""
    group_size: int = Field(10, ge=1)
    """Features of a group."""
    min_presence: float = Field(0.5, ge=0, le=1)
    """Share of the graphs' prompts on which a feature must be active; one of a single name cannot act on unseen
    prompts."""
    rank_by: RankBy = "contrast"
    """Predicted effect that ranks features: contrast, as `attribution.contrast` says; mean or zero, with that
    replacement; live_effect, to first order in the unfrozen model; total_effect, through the graph alone."""
    by: Literal["effect", "|effect|"] = "effect"
    """effect: the largest supporters of the answer first (necessity); |effect|: by size (sufficiency)."""
    n_controls: int = Field(3, ge=1)
    """Control groups for each group, matched in layer, position and size."""
    ablations: tuple[Ablation, ...] = ("zero", "mean")
    """Values that ablation sets features to."""
    resample_draws: int = Field(2, ge=1)
    """Donor prompts of each resampled prompt."""
    alphas: tuple[float, ...] = (-4, -2, -1, 0, 1, 2, 4)
    """Steering coefficients, in multiples of the natural activation scale."""
    patching: PatchingConfig = PatchingConfig()
    n_edges: int = Field(50, ge=0)
    """Edges through values that are measured, and as many through attention patterns."""
    edge_prompts: int = Field(16, ge=1)
    """Prompts on which an edge is measured, at most."""
    bootstrap: int = Field(2000, ge=100)
    """Cluster resamples behind each interval."""
    permutations: int = Field(9999, ge=99)
    """Sign flips behind each p-value."""
    ci: float = Field(0.95, gt=0, lt=1)
    """Share of the resamples that an interval holds."""
    seed: int = Field(0, ge=0)
    """Seed of draws and resamples."""
    save_every: int = Field(100, ge=1)
    """Samples between two saves of unfinished work."""

    @field_validator("kinds", "ablations", "alphas")
    @classmethod
    def _distinct(cls, value: tuple[object, ...]) -> tuple[object, ...]:
        if not value or len(set(value)) != len(value):
            raise ValueError("give at least one value, and each only once")
        return value

    @field_validator("alphas")
    @classmethod
    def _both_signs(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if not any(value):
            raise ValueError("a dose-response needs a coefficient that is not 0")
        return tuple(sorted(value))
