"""Documents of a corpus source, read in a seeded order from files, folders, patterns or the Hugging Face hub."""

from __future__ import annotations

import gzip
import io
import json
import lzma
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from mechstudy.core.errors import MechstudyError, first_sentence, nearest
from mechstudy.corpus.bundled import bundled_file
from mechstudy.corpus.config import SEPARATOR, Source, files_of_folder
from mechstudy.models.tokenizer import half_pair

TEXT_DOCUMENT_CHARACTERS = 2_000  # paragraphs are joined into documents of at least this many
HUB_SHUFFLE_BUFFER = 10_000
_BOM = b"\xef\xbb\xbf"  # the byte order mark that Windows editors write
_OPENERS: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".xz": lzma.open}


def read_documents(source: Source, text_field: str, seed: int) -> Iterator[str]:
    """Documents with at least one visible character, in an order given by ``seed``.

    Files are read in a shuffled order, one at a time, and documents are shuffled within each file. Hub datasets are
    streamed and shuffled through a buffer of 10,000 documents, so that a large one is not downloaded whole.

    Raises:
        MechstudyError: missing or unreadable file, missing field (``file:line``), bad UTF-8, no network.
    """
    assert source.kind != "sampled"
    if source.kind == "hf":
        yield from (text for text in _hub(source, text_field, seed) if text and text.strip())
        return
    if source.kind == "bundled":
        files, read = [bundled_file()], _READERS["jsonl"]
    else:
        files = _files(source)
        read = _READERS[source.kind]
    rng = np.random.default_rng(seed)
    for number in rng.permutation(len(files)).tolist():
        for text in read(files[number], text_field, rng):
            if text.strip():
                yield text


def _files(source: Source) -> list[Path]:
    path = source.path
    files = files_of_folder(source.kind, path) if path.is_dir() else [path] if path.exists() else _matching(path)
    if not files:
        others = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        guess = nearest(path.name, others)
        raise MechstudyError(
            "no such file", where=str(path), fix=f"did you mean {path.parent / guess}?" if guess else None
        )
    if empty := next((p for p in files if p.stat().st_size == 0), None):
        raise MechstudyError("the file is empty", where=str(empty))
    return files


def _matching(path: Path) -> list[Path]:
    """The files that match a pattern."""
    wild = next((i for i, part in enumerate(path.parts) if re.search(r"[*?\[]", part)), None)
    if wild is None:
        return []
    return sorted(p for p in Path(*path.parts[:wild]).glob("/".join(path.parts[wild:])) if p.is_file())


def _open(path: Path) -> io.BufferedReader | io.BytesIO:
    """A seekable binary file. A compressed file is unpacked into memory."""
    if path.suffix not in _OPENERS:
        return path.open("rb")
    try:
        with _OPENERS[path.suffix](path, "rb") as packed:
            return io.BytesIO(packed.read())
    except (OSError, EOFError, lzma.LZMAError) as error:
        raise MechstudyError("the compressed file is damaged", where=str(path), facts={"reason": str(error)}) from error


def _decode(line: bytes, where: str) -> str:
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise MechstudyError(
            "the text is not UTF-8",
            where=where,
            facts={"byte": f"0x{line[error.start]:02x} at byte {error.start} of the line"},
            fix="convert the file to UTF-8, for example with iconv",
        ) from error


def _text(path: Path, field: str, rng: np.random.Generator) -> Iterator[str]:
    """Documents of a plain text: separated by ``<|endoftext|>``, else paragraphs joined to 2,000 characters."""
    with _open(path) as file:
        text = "".join(_decode(line, f"{path}:{number}") for number, line in enumerate(file, 1))
    text = text.removeprefix("\ufeff")
    documents: list[str]
    if SEPARATOR in text:
        documents = text.split(SEPARATOR)
    else:
        documents, size = [], TEXT_DOCUMENT_CHARACTERS
        for paragraph in re.split(r"\r?\n(?:[ \t]*\r?\n)+", text):
            if size >= TEXT_DOCUMENT_CHARACTERS:
                documents.append(paragraph)
                size = len(paragraph)
            else:
                documents[-1] += "\n\n" + paragraph
                size += len(paragraph) + 2
    for number in rng.permutation(len(documents)).tolist():
        yield documents[number].strip("\r\n")


def _jsonl(path: Path, field: str, rng: np.random.Generator) -> Iterator[str]:
    """The field of each line. Only the lines' offsets are held in memory."""
    with _open(path) as file:
        lengths = np.fromiter((len(line) for line in file), dtype=np.int64)
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        for number in rng.permutation(len(lengths)).tolist():
            file.seek(int(offsets[number]))
            line = file.read(int(lengths[number]))
            line = line if number else line.removeprefix(_BOM)
            if line.strip():
                yield _field(_decode(line, f"{path}:{number + 1}"), field, f"{path}:{number + 1}")


def _field(line: str, field: str, where: str) -> str:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        fix = 'write {"text": "..."}, one object a line'
        raise MechstudyError(
            "the line is not JSON", where=where, facts={"reason": first_sentence(error)}, fix=fix
        ) from error
    if not isinstance(record, dict):
        raise MechstudyError("the line is not a JSON object", where=where, fix='write {"text": "..."}')
    if field not in record:
        guess = nearest(field, record)
        raise MechstudyError(
            f"no field {field!r}",
            where=where,
            facts={"fields": ", ".join(record) or "none"},
            fix=f"text_field: {guess}" if guess else "set text_field to the field that holds the text",
        )
    text = record[field]
    if not isinstance(text, str):
        fix = "a text on every line, or another text_field"
        raise MechstudyError(f"field {field!r} is {type(text).__name__}, not text", where=where, fix=fix)
    if half_pair(text) is not None:
        raise MechstudyError(
            f"field {field!r} holds half a surrogate pair, which is no character",
            where=where,
            facts={"at": f"character {half_pair(text)}"},
            fix="write the character itself, or leave the line out",
        )
    return text


def _parquet(path: Path, field: str, rng: np.random.Generator) -> Iterator[str]:
    """The column's texts, without nulls."""
    try:
        schema = pl.read_parquet_schema(path)
    except (pl.exceptions.PolarsError, OSError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise MechstudyError("not a readable parquet file", where=str(path), facts={"reason": reason}) from error
    if field not in schema:
        guess = nearest(field, schema)
        raise MechstudyError(
            f"no column {field!r}",
            where=str(path),
            facts={"columns": ", ".join(schema)},
            fix=f"text_field: {guess}" if guess else "set text_field to the column that holds the text",
        )
    if schema[field] != pl.String:
        raise MechstudyError(f"column {field!r} is {schema[field]}, not text", where=str(path))
    try:
        column = pl.read_parquet(path, columns=[field])[field].drop_nulls()
    except (pl.exceptions.PolarsError, OSError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise MechstudyError("the parquet file is damaged", where=str(path), facts={"reason": reason}) from error
    for number in rng.permutation(len(column)).tolist():
        yield column[number]


def _hub(source: Source, field: str, seed: int) -> Iterator[str | None]:
    where = f"hf:{source.location}"
    try:
        import datasets  # an extra
    except ImportError as error:
        raise MechstudyError(
            "reading Hugging Face datasets needs an extra package",
            where=where,
            fix="pip install 'mechstudy[hub]'",
        ) from error
    try:
        rows = datasets.load_dataset(
            source.location,
            source.config,
            split=source.split,
            revision=source.revision,
            streaming=True,
        ).shuffle(seed=seed, buffer_size=HUB_SHUFFLE_BUFFER)
        for row in rows:
            if field not in row:
                guess = nearest(field, row)
                raise MechstudyError(
                    f"no field {field!r}",
                    where=where,
                    facts={"fields": ", ".join(row)},
                    fix=f"text_field: {guess}" if guess else "set text_field to the field that holds the text",
                )
            yield row[field]
    except MechstudyError:
        raise
    except Exception as error:  # the library passes on the errors of a dozen others
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise MechstudyError(
            "the dataset cannot be read",
            where=where,
            facts={"reason": f"{type(error).__name__}: {reason}"},
            fix="check name, configuration and split; without a network use text:, jsonl: or parquet:",
        ) from error


_READERS: dict[str, Callable[[Path, str, np.random.Generator], Iterator[str]]] = {
    "text": _text,
    "jsonl": _jsonl,
    "parquet": _parquet,
}
