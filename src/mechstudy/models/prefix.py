"""Forward passes of the last tokens of prompts, on kept keys, values and residuals of the tokens before them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

from mechstudy.models.language_model import Edit, Hook, LanguageModel
from mechstudy.models.sites import Site


@dataclass(frozen=True)
class KeptRun:
    """A clean pass of B prompts of T tokens, with everything that a pass of their last tokens starts from.

    ``resid[layer]`` enters that layer; one more, the input of the final norm, is last. ``keys_values[layer]`` are those
    of every kv head, [B, G, T, H] each. ``logits_BV`` are those of the last position, or [B, n, V] of the n last ones,
    which ``logits_at`` then is.
    """

    tokens_BT: Int[Tensor, "b t"]
    resid: Sequence[Float[Tensor, "b t d"]]
    keys_values: Sequence[tuple[Float[Tensor, "b g t h"], Float[Tensor, "b g t h"]]]
    logits_BV: Float[Tensor, "b *n v"]
    logits_at: str | int = "last"


@dataclass(frozen=True)
class Prefix:
    """The first ``length`` tokens of B prompts: their keys and values in every layer, [B, G, length, H] each."""

    length: int
    keys_values: Sequence[tuple[Float[Tensor, "b g t h"], Float[Tensor, "b g t h"]]]

    def cache(self, copies: int = 1) -> Cache | None:
        """What passes of the tokens after these read: of all prompts, ``copies`` times. Any number of passes may."""
        if not self.length:
            return None
        rows = torch.arange(len(self.keys_values[0][0])).repeat(copies)
        layers: list[Any] = [_PrefixLayer(keys, values, rows) for keys, values in self.keys_values]
        return Cache(layers=layers)


NO_PREFIX = Prefix(0, ())


def keep_prefix(model: LanguageModel, tokens_BT: Int[Tensor, "b t"], length: int) -> Prefix:
    """Run the first ``length`` tokens of prompts once; later ones cannot change what they hold."""
    if not length:
        return NO_PREFIX
    cache = DynamicCache()  # without windows, as in `keep_run`
    model.forward(tokens_BT[:, :length], logits_at=None, cache=cache)
    layers: list[Any] = cache.layers
    return Prefix(length, [(layer.keys, layer.values) for layer in layers])


def keep_run(model: LanguageModel, tokens_BT: Int[Tensor, "b t"], *, logits_at: str | int = "last") -> KeptRun:
    """Run prompts once and keep residuals, keys and values of every layer."""
    sites = [*(Site("resid_pre", layer) for layer in range(model.n_layers)), Site("resid_post", model.n_layers - 1)]
    cache = DynamicCache()  # without windows: sliding ones are masks over all keys
    out = model.forward(tokens_BT, capture=sites, logits_at=logits_at, cache=cache)
    assert out.logits is not None
    layers: list[Any] = cache.layers
    kept = [(layer.keys, layer.values) for layer in layers]
    return KeptRun(tokens_BT, [out.activations[site] for site in sites], kept, out.logits, logits_at)


def run_last_tokens(
    model: LanguageModel,
    kept: KeptRun,
    rows: Sequence[int],
    layers: Sequence[int],
    position: int,
    edits: Mapping[Site, Edit],
) -> Float[Tensor, "rows *n v"]:
    """Logits of passes of prompts from their own layer and one token on; everything before is the clean run's.

    Each is the whole pass as long as edits change nothing of its row below its layer or before ``position``, up to
    rounding. All run together: a row joins the batch at its first layer.

    Args:
        model: the model of ``kept``.
        kept: the clean run.
        rows: which of its prompts; a prompt may occur several times.
        layers: the first block that each row runs, in rising order; the number of blocks for the final norm alone.
        position: the first token to run; at most the first of those whose logits are kept.
        edits: as for `LanguageModel.forward`, of the tokens from ``position`` on. In a layer, an edit sees the rows
            that have joined by then.
    """
    assert list(layers) == sorted(layers) and len(layers) == len(rows), (layers, rows)
    index = torch.tensor(list(rows), device=kept.tokens_BT.device)
    joining = {layer: index[[at == layer for at in layers]] for layer in dict.fromkeys(layers)}
    last = 1 if kept.logits_at == "last" else int(kept.logits_at)
    with ExitStack() as stack, torch.no_grad():
        normed = partial(_join, kept.resid[-1], joining.pop(model.n_layers, index[:0]), position)
        if not joining:  # no block runs
            final_BTD = normed(kept.resid[-1][:0, position:])
            edit = edits.get(Site("resid_post", model.n_layers - 1))
            final_BTD = final_BTD if edit is None else edit(final_BTD)
            return _squeezed(kept, model.unembed(model.final_norm(final_BTD[:, -last:])))
        first, *later = joining
        for layer in later:
            join = partial(_join, kept.resid[layer], joining[layer], position)
            block = model.blocks[layer].module
            stack.callback(block.register_forward_pre_hook(_at_input(join)).remove)
        block = model.blocks[-1].module
        stack.callback(block.register_forward_hook(_at_output(normed)).remove)
        start = (first, _join(kept.resid[first], joining[first], position, kept.resid[first][:0, position:]))
        out = model.forward(
            kept.tokens_BT[:1, position:],  # masks and rotary maps are those of any prompt of this length
            edits=edits,
            start=start,
            logits_at=kept.logits_at,
            cache=_prefix(kept, index, layers, position) if position else None,
        )
    assert out.logits is not None
    return out.logits


def _join(resid_BTD: Tensor, rows: Tensor, position: int, x_BTD: Tensor) -> Tensor:
    """The batch, and the clean residuals of the rows that join it."""
    return torch.cat([x_BTD, resid_BTD[rows.to(resid_BTD.device), position:]]) if len(rows) else x_BTD


def _at_input(change: Callable[[Tensor], Tensor]) -> Hook:
    return lambda _module, args: (change(args[0]), *args[1:])


def _at_output(change: Callable[[Tensor], Tensor]) -> Hook:
    def hook(_module: Any, _args: Any, output: Any) -> Any:
        return (change(output[0]), *output[1:]) if isinstance(output, tuple) else change(output)

    return hook


def _squeezed(kept: KeptRun, logits_BNV: Tensor) -> Tensor:
    return logits_BNV[:, 0] if kept.logits_at == "last" else logits_BNV


class _PrefixLayer(DynamicLayer):  # type: ignore[no-untyped-call]  # transformers' classes have few types
    """Keys and values of earlier tokens of prompts, which a pass of some ``rows`` reads and does not add to.

    Rows are taken when their layer runs: a prompt that many rows share is held once.
    """

    def __init__(self, keys: Tensor, values: Tensor, rows: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.keys, self.values, self.is_initialized = keys, values, True
        self.dtype, self.device = keys.dtype, keys.device
        self._kept, self._rows = (keys, values), rows.to(keys.device)

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        keys, values = (kept[self._rows] for kept in self._kept)
        return torch.cat([keys, key_states], -2), torch.cat([values, value_states], -2)


def _prefix(kept: KeptRun, index: Tensor, first: Sequence[int], position: int) -> Cache:
    """The kept keys and values before ``position`` of the rows that have joined in each layer.

    In layers that no row runs they only say how many there are.
    """
    layers: list[Any] = []
    for number, (keys, values) in enumerate(kept.keys_values):
        joined = sum(layer <= number for layer in first)
        layers.append(_PrefixLayer(keys[:, :, :position], values[:, :, :position], index[: max(joined, 1)]))
    return Cache(layers=layers)
