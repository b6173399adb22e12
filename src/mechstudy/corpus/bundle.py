"""Making the bundled corpus again."""

from __future__ import annotations

from pathlib import Path


def make_bundled_corpus(samples: Path, *, out: Path | None, model: str, rows: int, context: int, seed: int) -> None:
    """Samples what the samples folder lacks and writes the compressed corpus with its card."""
    from mechstudy.corpus.bundled import FOLDER, main
    from mechstudy.models.sources import model_name, resolve_source

    folder = resolve_source(model)
    arguments = {
        "model": folder,
        "samples": samples,
        "rows": rows,
        "context": context,
        "seed": seed,
        "out": out or FOLDER,
        "name": model_name(folder),
        "wheel": model.removeprefix("pypi:"),
    }
    main([text for name, value in arguments.items() for text in (f"--{name}", str(value))])
