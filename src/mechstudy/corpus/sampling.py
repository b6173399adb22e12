"""Text sampled from the model itself, which needs no download."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int, Int32
from torch import Tensor, nn
from transformers import AttentionInterface, DynamicCache, StaticCache

from mechstudy.core.errors import MechstudyError
from mechstudy.core.files import atomic_path
from mechstudy.core.progress import NullProgress, Progress
from mechstudy.corpus.packing import separator_token
from mechstudy.models.language_model import LanguageModel

DECODE_ATTENTION = "mechstudy_decode"
PLAIN_ATTENTION = ("llama", "mistral", "qwen2", "qwen3")  # families whose attention is softmax(qk) v, no more
_cached = 0  # number of keys written into the static cache


def sample_rows(
    model: LanguageModel,
    n_rows: int,
    context: int,
    *,
    temperature: float = 0.8,
    seed: int = 0,
    batch: int = 256,
    start_token: int | None = None,
    folder: Path | None = None,
    progress: Progress | None = None,
    fast: bool = True,
) -> Int32[Tensor, "{n_rows} {context}"]:
    """Rows of a start token and ``context - 1`` sampled tokens each.

    Special tokens are never drawn. Each batch has its own generator and is always sampled whole, so asking for more
    rows does not change the first ones. Tokens depend on the model's dtype and on ``batch`` through rounding.

    Args:
        model: the model that writes the text.
        n_rows: number of rows.
        context: tokens per row.
        temperature: of the softmax.
        seed: of all batches together.
        batch: rows sampled together.
        start_token: first token of every row; None uses the tokenizer's document separator.
        folder: finished batches (``b000.json``, ...): those it holds are not sampled again.
        progress: reports tokens.
        fast: use the grouped-query decode attention, if the family allows it, instead of the model's own.

    Raises:
        MechstudyError: no token to start from, or ``folder`` holds samples of other settings.
    """
    start = separator_token(model.tokenizer) if start_token is None else start_token
    if start is None:
        raise MechstudyError(f"the tokenizer of {model.name} has no separator, BOS or EOS token to start from")
    settings = {
        "model": model.name,
        "dtype": str(model.dtype).removeprefix("torch."),
        "start_token": start,
        "context": context,
        "temperature": temperature,
        "seed": seed,
        "batch": batch,
    }
    if folder is not None:
        _check_settings(folder, settings)
    n_batches = -(-n_rows // batch)
    rows = []
    with (progress or NullProgress()).bar("sample", n_batches * batch * (context - 1), "tokens") as bar:
        for number in range(n_batches):
            file = None if folder is None else folder / f"b{number:03d}.json"
            if file is not None and file.exists():
                rows.append(torch.tensor(read_batch(file, context), dtype=torch.int32))
            else:
                generator = torch.Generator().manual_seed((seed * 1_000_003 + number) % 2**64)  # torch takes no more
                rows.append(_sample_batch(model, batch, context, temperature, start, generator, fast))
                if file is not None:
                    with atomic_path(file) as temporary:
                        temporary.write_text(json.dumps(rows[-1].tolist()))
            bar.advance(batch * (context - 1))
    starts = torch.full((n_rows, 1), start, dtype=torch.int32)
    return torch.cat([starts, torch.cat(rows)[:n_rows]], dim=1)


def read_batch(file: Path, context: int) -> list[list[int]]:
    """Rows of one ``bNNN.json`` file, each of ``context - 1`` tokens.

    Raises:
        MechstudyError: the file cannot be read, or its rows have another length.
    """
    try:
        rows: list[list[int]] = json.loads(file.read_text())
    except ValueError as error:
        raise MechstudyError("the samples cannot be read", where=str(file), fix="delete the file") from error
    if any(len(row) != context - 1 for row in rows):
        raise MechstudyError(f"the samples have no {context - 1} tokens a row", where=str(file))
    return rows


def _sample_batch(
    model: LanguageModel,
    batch: int,
    context: int,
    temperature: float,
    start: int,
    generator: torch.Generator,
    fast: bool,
) -> Tensor:
    """Sampled tokens [batch, context - 1], each from one uniform draw, inverted through the cumulative sum."""
    global _cached
    refused = refused_tokens(model)
    ids_B1 = torch.full((batch, 1), start, dtype=torch.long, device=model.device)
    sampled = []
    with torch.inference_mode(), _decoding(model, context, fast) as cache:
        for position in range(context - 1):
            _cached = position + 1
            logits_BV = (
                model.hf(
                    input_ids=ids_B1,
                    past_key_values=cache,
                    use_cache=True,
                    position_ids=torch.full((batch, 1), position, device=model.device),
                )
                .logits[:, -1]
                .float()
            )
            logits_BV[:, refused] = -torch.inf
            cumulative_BV = torch.softmax(logits_BV / temperature, -1).cumsum_(-1)
            draw_B1 = torch.rand(batch, 1, generator=generator).to(model.device) * cumulative_BV[:, -1:]
            ids_B1 = torch.searchsorted(cumulative_BV, draw_B1).clamp_(max=cumulative_BV.shape[1] - 1)
            sampled.append(ids_B1)
    return torch.cat(sampled, 1).to("cpu", torch.int32)


def refused_tokens(model: LanguageModel) -> Int[Tensor, " n"]:
    """Tokens that are never drawn: special ones, and rows of the unembedding that are no token."""
    added = set(model.tokenizer.added_tokens_decoder)
    added |= set(range(len(model.tokenizer), model.vocab_size))
    return torch.tensor(sorted(t for t in added if t < model.vocab_size), dtype=torch.long, device=model.device)


def has_plain_attention(config: Any) -> bool:
    """Whether the decode attention equals the model's own: no soft cap, window or sink."""
    layer_types = getattr(config, "layer_types", None) or ["full_attention"]
    windowed = getattr(config, "sliding_window", None) is not None and getattr(config, "use_sliding_window", True)
    all_full = set(layer_types) == {"full_attention"}
    return config.model_type in PLAIN_ATTENTION and all_full and not windowed


@contextmanager
def _decoding(model: LanguageModel, context: int, fast: bool) -> Iterator[StaticCache | DynamicCache]:
    """A key-value cache with its attention, which replaces the model's own inside the block."""
    hf = model.hf
    if not (fast and has_plain_attention(hf.config)):
        yield DynamicCache(config=hf.config)
        return
    own = hf.config._attn_implementation
    hf.set_attn_implementation(DECODE_ATTENTION)
    try:
        yield StaticCache(config=hf.config, max_cache_len=context)
    finally:
        hf.set_attn_implementation(own)


def _decode_attention(
    _module: nn.Module,
    query_BH1D: Tensor,
    key_BGTD: Tensor,
    value_BGTD: Tensor,
    _mask: Tensor | None,
    scaling: float | None = None,
    **_: object,
) -> tuple[Tensor, None]:
    """Attention of one query token to the written part of a static cache, without repeating grouped keys."""
    batch, heads, length, width = query_BH1D.shape
    assert length == 1, length
    groups = key_BGTD.shape[1]
    key, value = key_BGTD[:, :, :_cached], value_BGTD[:, :, :_cached]
    scale = width**-0.5 if scaling is None else scaling
    grouped = query_BH1D.view(batch, groups, heads // groups, width)
    scores = torch.matmul(grouped, key.transpose(2, 3)).float() * scale
    out = torch.matmul(torch.softmax(scores, -1).to(value.dtype), value)
    return out.reshape(batch, heads, 1, width).transpose(1, 2), None


AttentionInterface.register(DECODE_ATTENTION, _decode_attention)


def _check_settings(folder: Path, settings: dict[str, Any]) -> None:
    """Checks that a folder's samples were made with these settings; records them in a new folder."""
    file = folder / "settings.json"
    if not file.exists():
        with atomic_path(file) as temporary:
            temporary.write_text(json.dumps(settings, indent=1) + "\n")
        return
    recorded = json.loads(file.read_text())
    if different := [name for name in settings if recorded.get(name) != settings[name]]:
        raise MechstudyError(
            "the folder holds samples of other settings",
            where=str(folder),
            facts={name: f"{recorded.get(name)} there, {settings[name]} asked for" for name in different},
            fix="name an empty folder",
        )
