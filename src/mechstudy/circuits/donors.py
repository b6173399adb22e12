"""What values of prompts are replaced by: zero, a mean, another prompt's, the corrupted prompt's."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol, get_args, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mechstudy.behaviours.schema import PromptPair
from mechstudy.circuits.named_positions import AlignedPrompt, NamedPositions, aligned
from mechstudy.core.errors import MechstudyError
from mechstudy.core.seeds import numpy_generator
from mechstudy.models.batches import captured, length_buckets
from mechstudy.models.language_model import LanguageModel
from mechstudy.models.sites import Site

Replacement = Literal["zero", "mean", "resample", "corrupted"]
Key = Hashable  # what a set of nodes calls one of its tensors; components call them by their site


@runtime_checkable
class Recorded(Protocol):
    """Values at every token that are computed from the activations of some sites."""

    @property
    def reads(self) -> tuple[Site, ...]:
        """The sites."""

    def values(self, activations: Mapping[Site, Tensor]) -> dict[Key, Tensor]:
        """The values, [B, T, width] each, of a forward pass's activations."""


@dataclass(frozen=True)
class SiteValues:
    """The activations of sites as they are."""

    reads: tuple[Site, ...]

    def values(self, activations: Mapping[Site, Tensor]) -> dict[Key, Tensor]:
        """The activations, by site."""
        return {site: activations[site] for site in self.reads}


@dataclass(frozen=True)
class Donors:
    """Replacements for a batch of clean prompts of one length.

    ``values[key]`` is [B, T, width]; ``has_BT`` marks the tokens that have one (a corrupted prompt of another length
    lacks some); ``position_BT`` is the number of each token's position name. ``relative_to`` are the values that a
    replacement is a change of, those of the clean run; without, those of the running pass. Up to token ``same_until``
    every prompt's donor holds what the prompt does, by causality. ``first`` tokens of the prompts are left out before
    these.
    """

    values: Mapping[Key, Float[Tensor, "b t w"]]
    has_BT: Bool[Tensor, "b t"]
    position_BT: Int[Tensor, "b t"]
    relative_to: Mapping[Key, Float[Tensor, "b t w"]] | None = None
    same_until: int = 0
    first: int = 0

    @property
    def n_alike(self) -> int:
        """First tokens that runs may leave out: no donor differs there, and the last token is always run."""
        return min(self.same_until, self.has_BT.shape[1] - 1)

    def after(self, n: int) -> Donors:
        """Those of the tokens after the first ``n``."""

        def cut(values: Mapping[Key, Tensor]) -> dict[Key, Tensor]:
            return {key: x_BTW[:, n:] for key, x_BTW in values.items()}

        return replace(
            self,
            values=cut(self.values),
            has_BT=self.has_BT[:, n:],
            position_BT=self.position_BT[:, n:],
            relative_to=None if self.relative_to is None else cut(self.relative_to),
            same_until=max(0, self.same_until - n),
            first=self.first + n,
        )


class DonorSource:
    """Gives replacements for any prompts, from one kind of donor.

    Args:
        model: runs the donors.
        recorded: what is replaced.
        to: ``zero``; the ``mean`` over the discovery prompts at the same named position; that of one of them, drawn for
            each prompt (``resample``: of several positions of one name their mean, and the mean of all prompts where
            it lacks the name); that of the prompt's ``corrupted`` one at the place of the token.
        positions: the names that positions have.
        discovery: the prompts that give means and resamples.
        seed: of the draw of resamples.
        draw: which of several draws; they are independent.
        batch_tokens: tokens run at a time.

    Raises:
        MechstudyError: an unknown kind, or a mean or resample without discovery prompts.
    """

    def __init__(
        self,
        model: LanguageModel,
        recorded: Sequence[Recorded],
        to: Replacement,
        positions: NamedPositions,
        discovery: Sequence[PromptPair | AlignedPrompt] = (),
        *,
        seed: int = 0,
        draw: int = 0,
        batch_tokens: int = 4096,
    ) -> None:
        if to not in get_args(Replacement):
            raise MechstudyError(f"nothing can be replaced by {to!r}", facts={"by": ", ".join(get_args(Replacement))})
        self.to, self.positions = to, positions
        self._model, self._recorded, self._batch_tokens = model, tuple(recorded), batch_tokens
        self._reads = tuple(dict.fromkeys(site for one in recorded for site in one.reads))
        self._seed, self._draw, self._n_discovery = seed, draw, len(discovery)
        self._means: dict[Key, Tensor] = {}  # [names, width]
        self._of_prompt: dict[Key, Tensor] = {}  # [prompts, names, width], for resamples
        self._averaged: set[str] = set()  # names that discovery prompts have
        if to in ("mean", "resample"):
            if not discovery:
                raise MechstudyError(f"replacing by {to} needs prompts to take activations from", fix="discovery=...")
            self._average(discovery)

    @torch.no_grad()
    def donors(self, prompts: Sequence[PromptPair | AlignedPrompt]) -> Donors:
        """The replacements of (clean) prompts of one length.

        Tokens of an answer have no mean and no resample.

        Raises:
            MechstudyError: replaced by the corrupted prompt's, and a prompt has none; by a mean or resample, and no
                discovery prompt has a token of some name.
        """
        some = [aligned(prompt) for prompt in prompts]
        number_BT = self.positions.numbers(some)
        has_BT, position_BT = torch.ones_like(number_BT, dtype=torch.bool), number_BT.clamp(min=0)
        if self.to == "corrupted":
            same_until = min((*prompt.may_differ, True).index(True) for prompt in some)
            return Donors(*self._corrupted(some), position_BT, same_until=same_until)
        if self.to == "zero":
            shape = (*position_BT.shape, -1)
            first = self._record([some[0].tokens])
            return Donors({k: torch.zeros_like(x[:, :1]).expand(shape) for k, x in first.items()}, has_BT, position_BT)
        has_BT = number_BT >= 0
        if lacking := {self.positions.names[i] for i in number_BT[has_BT].tolist()} - self._averaged:
            raise MechstudyError(
                f"no discovery prompt has a position {min(lacking)!r} to take a {self.to} from",
                fix="discovery prompts like those that are replaced",
            )
        if self.to == "mean":
            return Donors({k: table[position_BT] for k, table in self._means.items()}, has_BT, position_BT)
        chosen = donor_numbers(some, self._n_discovery, self._seed, "keep_only", self._draw)
        which = torch.tensor(chosen)[:, None]
        return Donors({k: table[which, position_BT] for k, table in self._of_prompt.items()}, has_BT, position_BT)

    def _record(self, tokens: Sequence[Sequence[int]]) -> dict[Key, Tensor]:
        at = captured(self._model, torch.tensor(tokens), self._reads) if self._reads else {}
        return {key: value for one in self._recorded for key, value in one.values(at).items()}

    def _corrupted(self, prompts: Sequence[AlignedPrompt]) -> tuple[dict[Key, Tensor], Tensor]:
        require_corrupted(prompts)
        has_BT = torch.tensor([[at is not None for at in prompt.corrupted_at] for prompt in prompts])
        rows: dict[Key, dict[int, Tensor]] = defaultdict(dict)
        for batch in length_buckets([len(prompt.corrupted) for prompt in prompts], self._batch_tokens):
            values = self._record([prompts[i].corrupted for i in batch])
            for b, i in enumerate(batch):
                at = torch.tensor([t or 0 for t in prompts[i].corrupted_at])
                for key, value in values.items():
                    rows[key][i] = value[b, at.to(value.device)]
        return {key: torch.stack([of[i] for i in range(len(prompts))]) for key, of in rows.items()}, has_BT

    @torch.no_grad()
    def _average(self, discovery: Sequence[PromptPair | AlignedPrompt]) -> None:
        """Sums of every name's tokens by prompt, in float64, then means."""
        n_names = len(self.positions.names)
        sums: dict[Key, list[Tensor]] = defaultdict(list)
        counts: list[Tensor] = []
        order: list[int] = []
        prompts = [aligned(prompt) for prompt in discovery]
        for batch in length_buckets([len(prompt.tokens) for prompt in prompts], self._batch_tokens):
            some = [prompts[i] for i in batch]
            of_name_BTN = torch.nn.functional.one_hot(self.positions.numbers(some), n_names).double()
            values = self._record([prompt.tokens for prompt in some])
            for key, value in values.items():
                summed = torch.einsum("btn,btw->bnw", of_name_BTN.to(value.device), value.double())
                sums[key].append(summed if self.to == "resample" else summed.sum(0, keepdim=True))
            counts.append(of_name_BTN.sum(1))
            order += batch
        count_PN = torch.cat(counts)
        total_N1 = count_PN.sum(0)[:, None].clamp(min=1)
        self._averaged = {name for name, n in zip(self.positions.names, count_PN.sum(0).tolist(), strict=True) if n}
        inverse = torch.tensor(order).argsort()
        for key, parts in sums.items():
            x = torch.cat(parts)
            mean = x.sum(0) / total_N1.to(x.device)
            self._means[key] = mean.to(self._model.dtype)
            if self.to == "resample":
                count = count_PN[..., None].to(x.device)
                own = torch.where(count > 0, x / count.clamp(min=1), mean)
                self._of_prompt[key] = own[inverse.to(x.device)].to(self._model.dtype)


def require_corrupted(pairs: Iterable[PromptPair | AlignedPrompt]) -> None:
    """Checks that every pair has a corrupted prompt.

    Raises:
        MechstudyError: one has none.
    """
    if (pair := next((pair for pair in pairs if not pair.has_corrupted), None)) is not None:
        raise MechstudyError(
            f"prompt {pair.id} has no corrupted prompt to take activations from",
            fix="ablate to the mean, to other prompts or to zero; or give corrupted prompts",
        )


def donor_numbers(
    pairs: Sequence[PromptPair | AlignedPrompt], n_donors: int, seed: int, behaviour: str, draw: int
) -> list[int]:
    """A donor's number for each pair: the same for circuit and controls, drawn separately in every draw."""
    return [int(numpy_generator(seed, behaviour, f"resample/{pair.id}/{draw}").integers(n_donors)) for pair in pairs]
