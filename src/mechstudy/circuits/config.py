"""Settings of attribution graphs; every field enters the artifact's id."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, field_validator

from mechstudy.core.config import Config


class ContrastConfig(Config):
    """How effects of replacing a node's value are predicted: the ``contrast_effect`` of a graph's nodes.

    ``replace_by``: the activation on the ``corrupted`` prompt, the ``mean`` over train prompts at the same named
    position, or ``zero``; ``auto`` is ``corrupted`` where every explained pair has a corrupted prompt, else ``mean``.
    ``method``: ``first_order`` is the change times the gradient of the unfrozen model; ``integrated`` is its mean over
    ``steps`` points of the path on which all nodes move together; ``auto`` measures on ``check_prompts`` prompts what
    replacing all nodes of each layer does, and integrates where first order misses by more than ``tolerance`` of it.
    """

    replace_by: Literal["auto", "corrupted", "mean", "zero"] = "auto"
    method: Literal["auto", "first_order", "integrated"] = "auto"
    steps: int = Field(10, ge=1)
    check_prompts: int = Field(3, ge=1)
    tolerance: float = Field(0.25, gt=0)


SAE_SITES = ("resid_post", "resid_pre", "mlp_out", "attn_out")
BasisKind = Literal["dictionaries", "neurons", "mixed"]
Elsewhere = Literal["errors", "linear"]


class AttributionConfig(Config):
    """Attribution graphs of one behaviour.

    ``target``: ``logit_difference`` explains logit(answer) - logit(wrong answer); ``logits`` explains the
    smallest set of top logits whose probability reaches ``logit_probability`` (at most ``max_logits``), each
    against the mean logit. ``node_threshold`` and ``edge_threshold`` are the shares of influence that pruning
    keeps; ``max_features`` bounds how many features of one prompt get their own row, chosen online by
    influence; the others count as error.

    ``qk_edges``: how many edges through attention patterns, the strongest, a prompt's graph lists beside the others.

    ``basis``: what the nodes are. ``dictionaries`` are those of the study; ``neurons`` are the neurons of every layer's
    MLP, and need no dictionary; ``mixed`` are dictionaries where there are some, and neurons in the other layers. The
    default is ``dictionaries``, and ``neurons`` in a study without them. ``max_neurons`` bounds how many neurons
    of one prompt are nodes (by default ``max_features``), chosen by their effects through the linear model; the others
    together are errors.
    ``elsewhere``: what the MLP of a layer without nodes is: ``errors``, one node per position, or ``linear``, the
    linear map that it is at the prompt, through which effects pass; the default is errors with transcoders, linear with
    SAEs.
    ``contrast``: how effects of replacing nodes are predicted.
    ``explains``: the target's value in the ``clean`` prompt, the default, or the ``difference``, clean minus corrupted,
    of its values in both: what the two prompts have in common drops out. Rows are then means over ``contrast.steps``
    points of the path between the two runs, and both prompts must have the same number of tokens.
    """

    optional: ClassVar[frozenset[str]] = frozenset({"explains"})

    target: Literal["logit_difference", "logits"] = "logit_difference"
    n_prompts: int = Field(16, ge=1)
    max_features: int = Field(1000, ge=1)
    node_threshold: float = Field(0.8, gt=0, le=1)
    edge_threshold: float = Field(0.98, gt=0, le=1)
    max_logits: int = Field(10, ge=1)
    logit_probability: float = Field(0.95, gt=0, le=1)
    basis: BasisKind | None = None
    max_neurons: int | None = Field(None, ge=1)
    elsewhere: Elsewhere | None = None
    aggregate_nodes: int = Field(300, ge=1)
    aggregate_min_prompts: int = Field(2, ge=1)
    qk_edges: int = Field(200, ge=0)
    contrast: ContrastConfig = ContrastConfig()
    explains: Literal["clean", "difference"] | None = None

    @field_validator("explains")
    @classmethod
    def _clean_is_the_default(cls, explains: str | None) -> str | None:
        return None if explains == "clean" else explains

    @property
    def n_neurons(self) -> int:
        """How many neurons of a prompt are nodes at most."""
        return self.max_neurons or self.max_features

    def elsewhere_of(self, has_saes: bool) -> Elsewhere:
        """What MLPs of layers without nodes are, with SAEs among the bases or without."""
        return self.elsewhere or ("linear" if has_saes else "errors")


def no_graphs(n_behaviours: int, basis: str | None, kind: str, site: str) -> str | None:
    """Why a study has no graphs: no behaviours, or SAEs of a site that no node can stand for; else None.

    Args:
        basis: what nodes are asked for (`AttributionConfig`).
        kind, site: of the study's dictionaries.
    """
    if n_behaviours == 0:
        return "no behaviours are named"
    if basis != "neurons" and kind == "sae" and site not in SAE_SITES:
        sites = ", ".join(SAE_SITES)
        return (
            f"graphs need transcoders or SAEs of {sites}, and these are SAEs of {site} "
            "(attribution.basis: neurons gives graphs without dictionaries)"
        )
    return None
