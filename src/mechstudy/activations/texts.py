"""Captures the activations of texts or prompt pairs in memory."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor

from mechstudy.activations.config import Positions
from mechstudy.activations.prompt_capture import PromptBatches
from mechstudy.behaviours.schema import PromptPair
from mechstudy.core.errors import MechstudyError
from mechstudy.core.progress import NullProgress, Progress
from mechstudy.models.batches import length_buckets
from mechstudy.models.language_model import LanguageModel
from mechstudy.models.sites import Site, parse_sites


class Activations(Mapping[str, Tensor]):
    """Activations by site: ``acts["resid_post.12"]`` is [N, width].

    ``rows`` describes each of the N rows: prompt (its number), position, token_id, token.
    """

    def __init__(self, by_site: Mapping[Site, Tensor], rows: pl.DataFrame) -> None:
        self._by_site, self.rows = dict(by_site), rows

    @property
    def sites(self) -> list[Site]:
        """The sites, in the order asked for."""
        return list(self._by_site)

    def __getitem__(self, site: str | Site) -> Tensor:
        site = Site.parse(site) if isinstance(site, str) else site
        if site not in self._by_site:
            raise MissingSite(f"{site} was not captured", facts={"sites": " ".join(map(str, self._by_site))})
        return self._by_site[site]

    def __iter__(self) -> Iterator[str]:
        return map(str, self._by_site)

    def __len__(self) -> int:
        return len(self._by_site)

    def frame(self, site: str | Site) -> pl.DataFrame:
        """``rows`` with one more column: each row's activation, a list of numbers."""
        values = self[site].float()
        return self.rows.with_columns(
            pl.Series("activation", values.numpy(), dtype=pl.Array(pl.Float32, values.shape[1]))
        )

    def __repr__(self) -> str:
        return f"Activations: {self._shapes()}\n{self.rows}"

    def _repr_html_(self) -> str:
        return f"<p>{self._shapes()}</p>{self.rows._repr_html_()}"

    def _shapes(self) -> str:
        return ", ".join(f"{site} {list(values.shape)}" for site, values in self._by_site.items())


class MissingSite(MechstudyError, KeyError):
    """This site was not captured; also a KeyError, as a Mapping promises."""


def capture(
    model: LanguageModel,
    texts: str | Sequence[str | PromptPair],
    sites: str | Site | Sequence[str | Site],
    *,
    positions: str | int | Sequence[str] = "all",
    instruction: str | None = None,
    batch_tokens: int = 4096,
    progress: Progress | None = None,
) -> Activations:
    """Run the model on texts and keep its activations at some sites and positions.

        acts = ms.capture(model, ["Paris is in"], sites="resid_post.10-15", positions="last-5")
        acts["resid_post.12"]       # [N, 576]
        acts.rows                   # prompt, position and token of each row

    Args:
        model: of any precision, which the activations keep.
        texts: one or several; a prompt pair stands for its clean prompt.
        sites: ``"mlp_out.12"``, ``"resid_post.10-15"``, ``"mlp_in.all"``, or a list of these. Kinds: resid_pre,
            resid_mid, resid_post, attn_heads (what heads write, before the output projection), attn_out, mlp_in
            (normed), mlp_act, mlp_out.
        positions: ``"all"``, ``"last-5"``, ``"last"``, a name of a prompt pair's positions, a token's index, or a
            list of these.
        instruction: the user's turn of the model's chat template, which the texts then begin to answer.
        batch_tokens: tokens per forward pass.
        progress: receives messages.

    Raises:
        MechstudyError: no texts, an empty one, a site or layer that does not exist, or a position that a text lacks.
    """
    captured_at = parse_sites(sites, model.n_layers)
    listed = [texts] if isinstance(texts, str) else list(texts)
    if not listed:
        raise MechstudyError("there are no texts", fix='at least one, such as ["Paris is in"]')
    prompts = [_tokens(model, text, number, instruction) for number, text in enumerate(listed)]
    chosen = [_places(positions, text, len(tokens)) for text, tokens in zip(listed, prompts, strict=True)]
    buckets = length_buckets([len(tokens) for tokens in prompts], batch_tokens)
    batches = PromptBatches((), range(len(prompts)), prompts, chosen, buckets)
    parts: dict[Site, dict[int, Tensor]] = {site: {} for site in captured_at}
    progress = progress or NullProgress()
    with progress.bar("capture", len(prompts), "texts") as bar:
        for members in buckets:
            for site, rows_ND in batches.rows(model, members, captured_at, progress).items():
                split = torch.split(rows_ND.cpu(), [len(chosen[i]) for i in members])
                parts[site] |= zip(members, split, strict=True)
            bar.advance(len(members))
    by_site = {site: torch.cat([rows[i] for i in range(len(prompts))]) for site, rows in parts.items()}
    return Activations(by_site, _rows(model, prompts, chosen))


def _tokens(model: LanguageModel, text: str | PromptPair, number: int, instruction: str | None) -> list[int]:
    if isinstance(text, PromptPair):
        return list(text.clean_tokens)
    tokens = model.encode(text, instruction=instruction) if text else []
    if not tokens:
        raise MechstudyError(f"text {number} is empty", fix="texts with at least one token")
    return tokens


def _places(positions: str | int | Sequence[str], text: str | PromptPair, length: int) -> NDArray[np.int64]:
    if isinstance(positions, int) or (isinstance(positions, str) and re.fullmatch(r"-?\d+", positions)):
        at = int(positions) if int(positions) >= 0 else length + int(positions)
        if not 0 <= at < length:
            raise MechstudyError(f"a text of {length} tokens has no position {positions}")
        return np.array([at])
    names = text.positions if isinstance(text, PromptPair) else {}
    return np.array(Positions.parse(positions).resolve(names, length))


def _rows(model: LanguageModel, prompts: Sequence[Sequence[int]], chosen: Sequence[NDArray[np.int64]]) -> pl.DataFrame:
    places = [(number, at, prompts[number][at]) for number, ats in enumerate(chosen) for at in ats.tolist()]
    frame = pl.DataFrame(places, schema={"prompt": pl.Int64, "position": pl.Int64, "token_id": pl.Int64}, orient="row")
    return frame.with_columns(token=pl.Series(model.token_strings([token for _, _, token in places]), dtype=pl.String))
