"""Settings of attribution graphs; every field enters the artifact's id."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, field_validator

from mechstudy.core.config import Config


class ContrastConfig(Config):
    """How effects of replacing a node's value are predicted: the ``contrast_effect`` of a graph's nodes."""

    replace_by: Literal["auto", "corrupted", "mean", "zero"] = "auto"
    """What a node's value is replaced by: its value on the corrupted prompt, the mean over train prompts at the same
    named position, or zero; auto: corrupted where every explained pair has a corrupted prompt, else mean."""
    method: Literal["auto", "first_order", "integrated"] = "auto"
    """first_order: the change times the gradient of the unfrozen model; integrated: its mean along the path on which
    all nodes move together; auto: first order where it predicts measured changes, else integrated."""
    steps: int = Field(10, ge=1)
    """Points of the path."""
    check_prompts: int = Field(3, ge=1)
    """Prompts on which auto measures what replacing all nodes of a layer does."""
    tolerance: float = Field(0.25, gt=0)
    """Share of the measured change by which first order may miss it."""


SAE_SITES = ("resid_post", "resid_pre", "mlp_out", "attn_out")
BasisKind = Literal["dictionaries", "neurons", "mixed"]
Elsewhere = Literal["errors", "linear"]


class AttributionConfig(Config):
    """Attribution graphs of one behaviour (docs/explanation/method.md).

    Of the target ``logits`` the smallest set of top logits is explained whose probability reaches
    ``logit_probability``. Neurons are chosen by their effects through the linear model; the others together are errors.
    With ``explains: difference`` what the two prompts have in common drops out: rows are means over ``contrast.steps``
    points of the path between the two runs.
    """

    optional: ClassVar[frozenset[str]] = frozenset({"explains"})

    target: Literal["logit_difference", "logits"] = "logit_difference"
    """What is explained: logit(answer) - logit(wrong answer), or the top logits, each against the mean logit."""
    n_prompts: int = Field(16, ge=1)
    """Train prompts that get a graph."""
    max_features: int = Field(1000, ge=1)
    """Features of one prompt that get a row of their own, chosen by influence; the others count as error."""
    node_threshold: float = Field(0.8, gt=0, le=1)
    """Share of the influence that pruning keeps in nodes."""
    edge_threshold: float = Field(0.98, gt=0, le=1)
    """Share of the influence that pruning keeps in edges."""
    max_logits: int = Field(10, ge=1)
    """Of the target logits: top logits explained at most."""
    logit_probability: float = Field(0.95, gt=0, le=1)
    """Of the target logits: probability that the explained logits reach together."""
    basis: BasisKind | None = None
    """Nodes: dictionaries, neurons of every layer's MLP, or mixed (neurons where there is no dictionary); without it
    dictionaries, and neurons in a study without them."""
    max_neurons: int | None = Field(None, ge=1)
    """Neurons of one prompt that are nodes, at most; without it max_features."""
    elsewhere: Elsewhere | None = None
    """The MLP of a layer without nodes: errors (a node per position) or linear (the linear map that it is at the
    prompt); without it errors with transcoders, linear with SAEs."""
    aggregate_nodes: int = Field(300, ge=1)
    """Nodes of a behaviour's aggregate graph, at most."""
    aggregate_min_prompts: int = Field(2, ge=1)
    """Prompts in whose graphs a node must be to enter the aggregate."""
    qk_edges: int = Field(200, ge=0)
    """Edges through attention patterns that a prompt's graph lists, the strongest."""
    contrast: ContrastConfig = ContrastConfig()
    explains: Literal["clean", "difference"] | None = None
    """The target's value in the clean prompt (without it), or the difference of its values, clean minus corrupted; both
    prompts then need as many tokens."""

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
