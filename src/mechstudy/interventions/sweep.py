"""Patch sweeps: the corrupted prompt's activation written into the clean prompt, at every layer and position."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import polars as pl

from mechstudy.behaviours.schema import PromptPair
from mechstudy.circuits.donors import require_corrupted
from mechstudy.circuits.named_positions import ALL, positions_left_to_right
from mechstudy.core.errors import MechstudyError, nearest
from mechstudy.core.progress import Progress
from mechstudy.interventions.effects import LogitEffects
from mechstudy.interventions.engine import ReplaceVector, RowEdit
from mechstudy.interventions.features import positions_named
from mechstudy.interventions.patching import donor
from mechstudy.interventions.results import COLUMNS
from mechstudy.interventions.runner import Suite, run_samples
from mechstudy.interventions.samples import GRID, Variant
from mechstudy.models.batches import length_buckets
from mechstudy.models.language_model import LanguageModel
from mechstudy.models.sites import Site, parse_layers

_SITES = ("resid_pre", "resid_post", "attn_out", "mlp_out")
_SCHEMA = {
    "prompt_id": pl.String, "layer": pl.Int64, "position": pl.Int64, "name": pl.String, "token": pl.String,
    "clean": pl.Float64, "corrupted": pl.Float64, "patched": pl.Float64, "effect": pl.Float64,
    "normalised": pl.Float64, "kl": pl.Float64,
}  # fmt: skip


def patch_sweep(
    model: LanguageModel,
    pairs: Sequence[PromptPair],
    site: str = "resid_post",
    *,
    layers: str | Sequence[int] = "all",
    positions: Literal["all", "named"] | Sequence[str] = "all",
    batch_tokens: int = 4096,
    progress: Progress | None = None,
) -> pl.DataFrame:
    """Where the information is: the corrupted prompt's activation at one layer and token, in the clean prompt's run.

        cells = ms.patch_sweep(model, pairs)
        cells.group_by("layer", "position").agg(pl.mean("normalised"))

    A cell starts at its layer and token, on the clean run's residuals, keys and values before them, and equals a whole
    run up to rounding. In cells that write into the residual stream what it holds already, the effect is exactly 0.

    Args:
        model: any supported model.
        pairs: prompt pairs with corrupted prompts.
        site: ``resid_pre``, ``resid_post``, ``attn_out`` or ``mlp_out``.
        layers: ``"all"``, ``"10-24"``, ``"3,5,8-10"`` or a list.
        positions: ``all`` tokens of the clean prompt that have a place in the corrupted one; the ``named`` ones; or a
            list of names.
        batch_tokens: tokens per batch; numbers do not depend on it beyond rounding.
        progress: receives messages.

    Returns:
        A row per pair, layer and token: prompt_id, layer, position (the token's index), name (of the position, if it
        has one), token, the metric (logit difference, or what else compares the pair's answers) of the clean, the
        corrupted and the patched run, effect (patched - clean), normalised (the share of clean - corrupted that
        patching removes: 0 nothing, 1 all; null where the two are equal) and kl (KL(clean || patched), nats).

    Raises:
        MechstudyError: a pair without a corrupted prompt, a site, layer or position that does not exist.
    """
    pairs = list(pairs)
    require_corrupted(pairs)
    if site not in _SITES:
        raise MechstudyError(
            f"cannot patch {site!r}",
            facts={"sites": ", ".join(_SITES)},
            fix=f"site={nearest(site, _SITES) or _SITES[1]!r}",
        )
    numbers = parse_layers(layers if isinstance(layers, str) else tuple(layers), model.n_layers)
    names = _names(pairs, positions)
    rows: list[dict[str, object]] = []
    for bucket in length_buckets([len(p.clean_tokens) for p in pairs], max(1, batch_tokens // 4)):
        few = tuple(pairs[i] for i in bucket)
        variants, where = _cells(model, few, site, numbers, names, batch_tokens)
        by_id = {pair.id: i for pair, i in zip(few, bucket, strict=True)}
        found = run_samples(
            model, {}, [Suite(GRID, few, variants, reuse=True)],
            lambda chunk: LogitEffects(model, chunk.pairs, progress), progress=progress, batch_tokens=batch_tokens,
        )  # fmt: skip
        for row in found:
            cell = dict(zip(COLUMNS, row, strict=True))
            number = by_id[str(cell["prompt_id"])]
            layer, place = where[str(cell["item"])]
            rows.append(_row(model, pairs[number], layer, place) | _numbers(cell) | {"order": number})
    frame = pl.DataFrame(rows, schema=_SCHEMA | {"order": pl.Int64})
    return frame.sort("order", "layer", "position", maintain_order=True).drop("order")


def _names(pairs: Sequence[PromptPair], positions: str | Sequence[str]) -> list[str] | None:
    """The names asked for; None for all tokens."""
    if positions == "all":
        return None
    known = positions_left_to_right(pairs)
    if positions == "named":
        return known
    names = [positions] if isinstance(positions, str) else list(positions)
    for name in names:
        if name not in known:
            raise MechstudyError(
                f"no prompt has a position {name!r}",
                facts={"positions": ", ".join(("all", "named", *known))},
                fix=f"positions={[nearest(name, known) or 'last']!r}",
            )
    return names


def _cells(
    model: LanguageModel,
    pairs: Sequence[PromptPair],
    kind: str,
    layers: Sequence[int],
    names: Sequence[str] | None,
    batch_tokens: int,
) -> tuple[tuple[Variant, ...], dict[str, tuple[int, int | str]]]:
    """An intervention per layer and name, or per layer and token index, and what each is called in results."""
    sites = [Site(kind, layer) for layer in layers]
    corrupted = donor(model, pairs, sites, batch_tokens=batch_tokens)
    at_token: dict[tuple[int, Site], dict[int, ReplaceVector]] = {}
    if names is None:
        for i, pair in enumerate(pairs):
            for s in sites:
                at_token[i, s] = {edit.position: edit for edit in corrupted.edits(pair, ALL, s)}

    def edits(s: Site, place: int | str) -> Callable[[int], Sequence[RowEdit]]:
        if isinstance(place, str):
            return lambda i: corrupted.edits(pairs[i], place, s)
        return lambda i: [at_token[i, s][place]] if place in at_token[i, s] else []

    places: Sequence[int | str] = range(len(pairs[0].clean_tokens)) if names is None else names
    where = {f"{s}@{place}": (s.layer, place) for s in sites for place in places}
    variants = tuple(
        Variant(GRID, f"{s}@{place}", "", "effect", s.layer, edits(s, place), only_where_edited=True)
        for place in places  # rows that start at one token run together
        for s in sites
    )
    return variants, where


def _row(model: LanguageModel, pair: PromptPair, layer: int, place: int | str) -> dict[str, object]:
    at = place if isinstance(place, int) else positions_named(pair, place)[0]
    own = [name for name, index in pair.positions.items() if index == at]
    return {
        "prompt_id": pair.id,
        "layer": layer,
        "position": at,
        "name": place if isinstance(place, str) else ", ".join(own) or None,
        "token": model.token_strings([pair.clean_tokens[at]])[0],
    }


def _numbers(cell: Mapping[str, object]) -> dict[str, object]:
    clean, corrupted, effect = (float(str(cell[name])) for name in ("clean", "corrupted", "value"))
    return {
        "clean": clean,
        "corrupted": corrupted,
        "patched": cell["metric"],
        "effect": effect,
        "normalised": -effect / (clean - corrupted) if clean != corrupted else None,
        "kl": cell["kl"],
    }
