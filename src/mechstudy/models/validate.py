"""Exact identities that a loaded model must satisfy before its numbers can be trusted."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechstudy.core.errors import MechstudyError
from mechstudy.models.attention import recorded_patterns
from mechstudy.models.language_model import LanguageModel
from mechstudy.models.sites import Site

# Largest relative residual per dtype; each is a few roundings of that dtype, summed over a layer.
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 6e-2, torch.float16: 2e-2}


def identities(model: LanguageModel, n_tokens: int = 8) -> dict[str, float]:
    """The largest relative residual of each identity, on a dummy forward pass.

    The residual stream adds up; our logits equal the model's own; frozen norms and frozen attention (the linear maps
    that attribution graphs use) reproduce the modules; a batch equals its rows; a forward pass started in the middle
    equals a whole one.
    """
    tokens = torch.arange(2 * n_tokens, device=model.device).reshape(2, n_tokens) * 7 % model.vocab_size
    checks = {
        "residual_adds_up": _residual(model, tokens),
        "logits_equal_model": _logits(model, tokens),
        "batch_equals_single": _batch(model, tokens),
        "start_in_the_middle": _start(model, tokens),
    }
    return checks | _linear_parts(model, tokens)


def validate_model(model: LanguageModel, n_tokens: int = 8) -> dict[str, float]:
    """Checks the identities and returns their residuals (see `identities`).

    Raises:
        MechstudyError: an identity fails, so the family table does not describe this model; or weights are not finite.
    """
    checks = identities(model, n_tokens)
    tolerance = TOLERANCE[model.dtype]
    for name, residual in checks.items():
        if not residual <= tolerance:
            if (broken := not_finite(model)) is not None:
                raise MechstudyError(f"{model.name}: {broken}", fix="fetch the weights again, or an earlier checkpoint")
            raise MechstudyError(
                f"{model.name} fails the check {name}",
                facts={"relative residual": f"{residual:.2e}, at most {tolerance:.0e} is allowed"},
                fix="the weights are broken, or this variant of the family is not supported: please report it",
            )
    return checks


def not_finite(model: LanguageModel) -> str | None:
    """A sentence on the first weights that hold NaN or infinity; None where there are none. Reads all of them."""
    for name, tensor in model.hf.named_parameters():
        if bad := int((~tensor.isfinite()).sum()):
            return f"tensor {name} holds {bad:,} of {tensor.numel():,} values that are no finite numbers"
    return None


def relative_error(actual: Float[Tensor, "*shape"], expected: Float[Tensor, "*shape"]) -> float:
    """The largest difference, divided by the largest expected magnitude."""
    scale = expected.abs().max().double().clamp_min(1e-30)
    return float((actual.double() - expected.double()).abs().max() / scale)


def _sites(model: LanguageModel, *kinds: str) -> list[Site]:
    return [Site(kind, layer) for layer in range(model.n_layers) for kind in kinds]


def _residual(model: LanguageModel, tokens: Int[Tensor, "b t"]) -> float:
    sites = _sites(model, "resid_pre", "attn_out", "mlp_out", "resid_post")
    activations = model.forward(tokens, capture=sites, logits_at=None).activations
    worst = 0.0
    for layer in range(model.n_layers):
        pre, attn, mlp, post = (activations[Site(k, layer)] for k in ("resid_pre", "attn_out", "mlp_out", "resid_post"))
        worst = max(worst, relative_error(pre.double() + attn.double() + mlp.double(), post))
        if layer + 1 < model.n_layers:
            worst = max(worst, relative_error(activations[Site("resid_pre", layer + 1)], post))
    return worst


def _logits(model: LanguageModel, tokens: Int[Tensor, "b t"]) -> float:
    with torch.no_grad():
        expected = model.hf(input_ids=tokens, use_cache=False).logits
    return relative_error(model.forward(tokens, logits_at="all").logits, expected)  # type: ignore[arg-type]


def _batch(model: LanguageModel, tokens: Int[Tensor, "b t"]) -> float:
    together = model.forward(tokens, logits_at="all").logits
    alone = torch.cat([model.forward(row[None], logits_at="all").logits for row in tokens])  # type: ignore[misc]
    return relative_error(together, alone)  # type: ignore[arg-type]


def _start(model: LanguageModel, tokens: Int[Tensor, "b t"]) -> float:
    layer = model.n_layers // 2
    site = Site("resid_pre", layer)
    whole = model.forward(tokens, capture=[site])
    part = model.forward(tokens, start=(layer, whole.activations[site]))
    return relative_error(part.logits, whole.logits)  # type: ignore[arg-type]


def _linear_parts(model: LanguageModel, tokens: Int[Tensor, "b t"]) -> dict[str, float]:
    """Frozen norms against `mlp_in`, frozen patterns through the value and output maps against `attn_out`."""
    kinds = ["resid_pre", "attn_out", "mlp_in"]
    with recorded_patterns(model.hf) as patterns:
        activations = model.forward(tokens, capture=_sites(model, *kinds), logits_at=None).activations
    norms = attentions = 0.0
    for layer, block in enumerate(model.blocks):
        pre, attn, mlp_in = (activations[Site(k, layer)] for k in kinds)
        mid = pre if block.parallel else pre + attn
        norms = max(norms, relative_error(model.linear_norm(block.norm_mlp, mid).forward(mid), mlp_in))
        normed = model.linear_norm(block.norm_attn, pre).forward(pre)
        heads = block.attention_weights().forward(patterns[layer], normed)
        if block.norm_attn_post is not None:
            heads = model.linear_norm(block.norm_attn_post, heads).forward(heads)
        attentions = max(attentions, relative_error(heads, attn))
    return {"frozen_norms": norms, "frozen_attention": attentions}
