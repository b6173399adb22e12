"""Prompts, what nodes hold on them, and what they are replaced by: recorded once for several methods."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mechstudy.behaviours.contrast import Contrast, contrasts
from mechstudy.behaviours.prompts import checked_pairs
from mechstudy.behaviours.schema import PromptPair
from mechstudy.circuits.donors import Donors, DonorSource, Key, Recorded, Replacement, SiteValues
from mechstudy.circuits.universe import NodeSet
from mechstudy.core.errors import MechstudyError
from mechstudy.models.batches import length_buckets
from mechstudy.models.language_model import Edit, LanguageModel
from mechstudy.models.prefix import NO_PREFIX, Prefix, keep_prefix
from mechstudy.models.sites import Site

INPUTS = Site("resid_pre", 0)  # the embeddings, which the path of inputs leads through


@dataclass(frozen=True)
class Batch:
    """Clean prompts of one length, their activations, and how donors' values differ from theirs."""

    tokens_BT: Tensor
    of_row: Sequence[Contrast]
    value_B: Tensor
    clean: Mapping[Site, Tensor]
    differences: Mapping[Key, Tensor]
    donors: Donors
    prefix: Prefix = NO_PREFIX  # the first tokens, where they are left out

    def differing(self, model: LanguageModel) -> Batch:
        """The tokens from the first on at which a donor can differ, for runs in which nodes alone are replaced."""
        if not (n := self.donors.n_alike):
            return self
        prefix, donors = keep_prefix(model, self.tokens_BT, n), self.donors.after(n)
        clean = {site: x_BTW[:, n:] for site, x_BTW in self.clean.items()}
        differences = {key: x_BTW[:, n:] for key, x_BTW in self.differences.items()}
        tokens_BT = self.tokens_BT[:, n:]
        return replace(self, tokens_BT=tokens_BT, clean=clean, differences=differences, donors=donors, prefix=prefix)

    def shares(self, points: Sequence[float]) -> Tensor:
        """The share of every row, where rows are all prompts once for each point of a path."""
        like = next(iter(self.clean.values()))
        return like.new_tensor(list(points)).repeat_interleave(len(self.tokens_BT))

    def moved(self, site: Site, share_R: Tensor) -> Edit:
        """Writes the clean activations over a site, with a share of the donors' difference where there are donors.

        Rows are all prompts, once or several times.
        """
        times = len(share_R) // len(self.tokens_BT)
        x_RTW, change_RTW = (x_BTW.repeat(times, 1, 1) for x_BTW in (self.clean[site], self.differences[site]))
        has_RT1 = self.donors.has_BT[..., None].to(x_RTW.device).repeat(times, 1, 1)
        moved = torch.where(has_RT1, x_RTW + share_R[:, None, None] * change_RTW, x_RTW)
        return lambda _: moved


class Recording:
    """Prompts, what nodes hold on them, and what they are replaced by.

    Recorded once for several methods where all prompts are one batch's worth of tokens, else again at every use.

    Args:
        model: the model.
        nodes: the nodes.
        pairs: the prompts.
        replace_by: what a node is replaced by (`DonorSource`).
        discovery: prompts that give means and resamples; by default the same.
        seed: of resamples.
        batch_tokens: tokens run at a time.

    Raises:
        MechstudyError: no prompts, or whole answers to compare.
    """

    def __init__(
        self,
        model: LanguageModel,
        nodes: NodeSet,
        pairs: Iterable[PromptPair],
        replace_by: Replacement,
        *,
        discovery: Sequence[PromptPair] = (),
        seed: int = 0,
        batch_tokens: int = 4096,
    ) -> None:
        self._model, self.pairs, self.replace_by = model, comparable(pairs), replace_by
        self._recorded: list[Recorded] = [nodes, SiteValues((INPUTS,))]
        self._replacements = DonorSource(
            model, self._recorded, replace_by, nodes.positions, discovery or self.pairs, seed=seed,
            batch_tokens=batch_tokens,
        )  # fmt: skip
        self.numbers = length_buckets([len(pair.clean_tokens) for pair in self.pairs], batch_tokens)
        self._keeps = sum(len(pair.clean_tokens) for pair in self.pairs) <= batch_tokens
        self._kept: dict[bool, list[Batch]] = {}

    def batches(self, *, differing: bool = False) -> Iterator[Batch]:
        """The prompts of each of ``numbers``; with ``differing`` their tokens from the first that can differ on."""
        if (kept := self._kept.get(differing)) is not None:
            yield from kept
            return
        made = (batch.differing(self._model) for batch in self.batches()) if differing else self._recorded_now()
        if self._keeps:
            made = iter(self._kept.setdefault(differing, list(made)))
        yield from made

    def _recorded_now(self) -> Iterator[Batch]:
        for some in self.numbers:
            yield _batch_of(self._model, [self.pairs[i] for i in some], self._recorded, self._replacements)


def comparable(pairs: Iterable[PromptPair]) -> list[PromptPair]:
    """The pairs as a list.

    Raises:
        MechstudyError: there are none, or one compares whole answers.
    """
    listed = checked_pairs(pairs)
    if (whole := next((pair for pair in listed if pair.whole_answers), None)) is not None:
        raise MechstudyError(
            f"prompt {whole.id} compares whole answers, and components are compared at the next token",
            fix='answers whose first tokens differ, and answer_tokens="first"',
        )
    return listed


@torch.no_grad()
def _batch_of(
    model: LanguageModel, pairs: Sequence[PromptPair], recorded: Sequence[Recorded], replacements: DonorSource
) -> Batch:
    """Pairs of one length: what is recorded on their clean prompts, and how the donors differ."""
    tokens_BT = torch.tensor([pair.clean_tokens for pair in pairs])
    of_row = [Contrast.of_pair(pair) for pair in pairs]
    sites = list(dict.fromkeys(site for one in recorded for site in one.reads))
    out = model.forward(tokens_BT, capture=sites)
    assert out.logits is not None
    clean = {key: value for one in recorded for key, value in one.values(out.activations).items()}
    donors = replace(replacements.donors(pairs), relative_to=clean)
    differences = {key: donors.values[key].to(value) - value for key, value in clean.items() if key in donors.values}
    return Batch(tokens_BT, of_row, contrasts(out.logits, of_row), out.activations, differences, donors)
