"""Settings of interventions; every field enters the artifact's id."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from mechstudy.core.config import Config

Kind = Literal["ablation", "resampling", "patching", "steering", "edges"]
Ablation = Literal["zero", "mean"]
RankBy = Literal["contrast", "mean", "zero", "live_effect", "total_effect"]


class PatchingConfig(Config):
    """The grid of layers x named positions into which the corrupted prompt's activations are written.

    ``layers``: ``"all"``, ``"10-24"``, ``"3,5,8-10"`` or a list. ``n_pairs``: test pairs per cell.
    """

    site: Literal["resid_post", "mlp_out", "attn_out"] = "resid_post"
    layers: str | tuple[int, ...] = "all"
    n_pairs: int = Field(default=50, ge=1)


class InterventionConfig(Config):
    """Interventions on one behaviour's circuit.

    Groups hold ``group_size`` features each, ranked on train prompts by ``rank_by``. ``contrast`` is the effect
    predicted where a feature is replaced, as ``attribution.contrast`` says; ``mean`` and ``zero`` are the same with
    that replacement. ``live_effect`` is what a feature adds, to first order in the unfrozen model; ``total_effect`` the
    same through the graph, without queries and keys. ``by`` ranks by the signed ``effect``, the largest supporters of
    the answer first (necessity), or by its size, ``|effect|`` (sufficiency). Features are active on at least
    ``min_presence`` of the graphs' prompts: one of a single name cannot act on unseen prompts. Each group is compared
    with ``n_controls`` groups matched in layer, position and size. ``alphas`` are multiples of the natural activation
    scale. ``n_discovery`` training prompts give means, donors and matches; ``n_samples`` test prompts give effects.
    ``n_edges`` edges through values and as many through attention patterns are measured, on up to ``edge_prompts``
    prompts each, their sources replaced as ``rank_by`` replaces features, else set to zero. Intervals hold the share
    ``ci`` of ``bootstrap`` cluster resamples; p-values come from ``permutations`` sign flips.
    """

    kinds: tuple[Kind, ...] = ("ablation", "resampling", "patching", "steering", "edges")
    n_samples: int = Field(100, ge=1)
    n_discovery: int = Field(100, ge=1)
    n_groups: int = Field(10, ge=1)
    group_size: int = Field(10, ge=1)
    min_presence: float = Field(0.5, ge=0, le=1)
    rank_by: RankBy = "contrast"
    by: Literal["effect", "|effect|"] = "effect"
    n_controls: int = Field(3, ge=1)
    ablations: tuple[Ablation, ...] = ("zero", "mean")
    resample_draws: int = Field(2, ge=1)
    alphas: tuple[float, ...] = (-4, -2, -1, 0, 1, 2, 4)
    patching: PatchingConfig = PatchingConfig()
    n_edges: int = Field(50, ge=0)
    edge_prompts: int = Field(16, ge=1)
    bootstrap: int = Field(2000, ge=100)
    permutations: int = Field(9999, ge=99)
    ci: float = Field(0.95, gt=0, lt=1)
    seed: int = Field(0, ge=0)
    save_every: int = Field(100, ge=1)

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
