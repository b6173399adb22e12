"""Keep-only runs: every node outside of a circuit is replaced, and the rest of the model runs live."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil

import torch
from jaxtyping import Bool, Float64
from torch import Tensor

from mechstudy.behaviours.contrast import Contrast, contrasts
from mechstudy.behaviours.schema import PromptPair
from mechstudy.circuits.donors import Donors, DonorSource
from mechstudy.circuits.effects_table import by_prompt
from mechstudy.circuits.universe import NodeSet
from mechstudy.core.progress import NullProgress, Progress
from mechstudy.machine.runtime import oom_backoff
from mechstudy.models.batches import captured, length_buckets
from mechstudy.models.language_model import LanguageModel
from mechstudy.models.prefix import keep_prefix
from mechstudy.models.sites import Site


@torch.no_grad()
def keep_only_values(
    model: LanguageModel,
    pairs: Sequence[PromptPair],
    nodes: NodeSet,
    keep_CN: Bool[Tensor, "c n"],
    replacements: DonorSource,
    *,
    batch_tokens: int = 4096,
    progress: Progress | None = None,
) -> Float64[Tensor, "c p"]:
    """The answers' contrast of each pair's clean prompt when each circuit is kept and every other node replaced.

    Circuits and prompts of one length share batches, which start at the lowest replaced layer and, where there are
    several circuits, at the first token whose replacement can differ. Whatever is kept computes from what reaches it.
    Equal circuits give equal bits; keeping every node changes no bit of the logits, but for rounding where several
    circuits share the first tokens.

    Args:
        model: the model.
        pairs: the prompts.
        nodes: the universe that circuits are parts of.
        keep_CN: the nodes that each circuit keeps.
        replacements: of the nodes' values.
        batch_tokens: tokens run at a time, at least one circuit on one prompt.
        progress: receives messages.

    Raises:
        MechstudyError: a pair without a corrupted prompt, if they are the donors.
    """
    assert keep_CN.shape[1] == len(nodes.nodes), (keep_CN.shape, len(nodes.nodes))
    batches = length_buckets([len(pair.clean_tokens) for pair in pairs], batch_tokens)
    parts = []
    for batch in batches:
        rows = _Rows(model, [pairs[i] for i in batch], nodes, keep_CN, replacements)
        n_tokens = rows.n_tokens
        size = max(1, min(len(keep_CN), batch_tokens // n_tokens))
        parts.append(oom_backoff(rows.values, size, progress or NullProgress(), item_tokens=n_tokens).T)
    return by_prompt(batches, parts).T


class _Rows:
    """All circuits on prompts of one length."""

    def __init__(
        self,
        model: LanguageModel,
        pairs: Sequence[PromptPair],
        nodes: NodeSet,
        keep_CN: Tensor,
        replacements: DonorSource,
    ) -> None:
        self._model, self._nodes, self._keep_CN = model, nodes, keep_CN
        self._of_row = [Contrast.of_pair(pair) for pair in pairs]
        tokens_BT, donors = torch.tensor([pair.clean_tokens for pair in pairs]), replacements.donors(pairs)
        # A prefix is worth a pass of its own where several circuits share it.
        length = donors.n_alike if len(keep_CN) > 1 else 0
        self._prefix = keep_prefix(model, tokens_BT, length)
        self._start = self._lowest(tokens_BT, donors)
        self._tokens_BT, self._donors = tokens_BT[:, length:], donors.after(length)

    @property
    def n_tokens(self) -> int:
        """Tokens that are run for each circuit."""
        return self._tokens_BT.numel()

    def _lowest(self, tokens_BT: Tensor, donors: Donors) -> tuple[int, Tensor] | None:
        """The lowest layer that some circuit changes, and the residual stream that enters it; None for the first."""
        some_RN = (~self._keep_CN).any(0, keepdim=True).expand(len(tokens_BT), -1)
        changed = self._nodes.edits(some_RN, donors)
        layer = min((site.layer for site in changed), default=0)
        if layer == 0:
            return None
        below = Site("resid_post", layer - 1)
        return layer, captured(self._model, tokens_BT, [below])[below][:, self._prefix.length :]

    def values(self, size: int) -> Tensor:
        """The contrast [C, B], at most ``size`` circuits at a time.

        All batches have one shape, filled up with the last circuit, so that equal circuits give equal bits.
        """
        circuits = len(self._keep_CN)
        even = ceil(circuits / ceil(circuits / size))
        filled_CN = self._keep_CN[torch.arange(even * ceil(circuits / even)).clamp(max=circuits - 1)]
        return torch.cat([self._of(keep_CN) for keep_CN in torch.split(filled_CN, even)])[:circuits]

    def _of(self, keep_CN: Tensor) -> Tensor:
        n = len(keep_CN)
        out = self._model.forward(
            self._tokens_BT.repeat(n, 1),
            edits=self._nodes.edits((~keep_CN).repeat_interleave(len(self._tokens_BT), 0), self._donors),
            start=None if self._start is None else (self._start[0], self._start[1].repeat(n, 1, 1)),
            cache=self._prefix.cache(n),
        )
        assert out.logits is not None
        return torch.unflatten(contrasts(out.logits, self._of_row * n), 0, (n, -1))
