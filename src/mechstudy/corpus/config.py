"""Where the text for dictionary training comes from, and how much of it. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator

from mechstudy.core.config import Config
from mechstudy.core.errors import MechstudyError, nearest

FILE_KINDS = ("text", "jsonl", "parquet")
HUB_SPLITS = ("train", "validation", "valid", "test", "dev")
SUFFIXES = {"text": (".txt", ".md"), "jsonl": (".jsonl", ".ndjson"), "parquet": (".parquet",)}  # read from a folder
_COMPRESSED = (".gz", ".xz")
SEPARATOR = "<|endoftext|>"  # between documents, in plain text files and in token rows


@dataclass(frozen=True)
class Source:
    """A parsed corpus source. ``location`` is a path, or the dataset's name for ``hf``."""

    kind: Literal["bundled", "sampled", "text", "jsonl", "parquet", "hf"]
    location: str = ""
    config: str | None = None
    split: str = "train"
    revision: str | None = None

    @classmethod
    def parse(cls, text: str) -> Source:
        """Parses ``bundled``, ``self``, ``text:PATH``, ``jsonl:PATH``, ``parquet:PATH`` or ``hf:...``.

        ``hf:DATASET[:CONFIG][:SPLIT][@REVISION]``: a single name after the dataset is a split if it is one of the
        usual split names, else a configuration. ``sampled`` is an earlier spelling of ``self``.

        Raises:
            MechstudyError: unknown kind, or nothing after the colon.
        """
        kind, _, rest = text.partition(":")
        if kind in ("bundled", "self", "sampled"):
            if rest:
                raise MechstudyError(f"{kind!r} takes nothing after it", fix=f"write {kind}")
            return cls("bundled" if kind == "bundled" else "sampled")
        if kind not in (*FILE_KINDS, "hf"):
            guess = nearest(kind, ["bundled", "self", "sampled", *FILE_KINDS, "hf"])
            raise MechstudyError(
                f"{text!r} is not a corpus source",
                facts={"sources": "bundled, self, text:PATH, jsonl:PATH, parquet:PATH, hf:DATASET[:CONFIG]"},
                fix=f"did you mean {guess!r}?" if guess else None,
            )
        if not rest:
            raise MechstudyError(f"{text!r} names nothing to read", fix=f"write {kind}:PATH")
        if kind != "hf":
            return cls(kind, rest)  # type: ignore[arg-type]  # one of FILE_KINDS, checked above
        return cls._parse_hub(rest)

    @classmethod
    def _parse_hub(cls, rest: str) -> Source:
        if "[" in rest:
            raise MechstudyError(
                f"'hf:{rest}' slices its split", fix="name the split alone: tokens says how much of it is read"
            )
        rest, _, revision = rest.partition("@")
        name, *parts = rest.split(":")
        if len(parts) == 1 and parts[0] in HUB_SPLITS:
            parts = ["", *parts]
        if not name or len(parts) > 2:
            raise MechstudyError(f"'hf:{rest}' is not a dataset", fix="write hf:DATASET[:CONFIG][:SPLIT][@REVISION]")
        config, split = (*parts, "", "")[:2]
        return cls("hf", name, config or None, split or "train", revision or None)

    @property
    def path(self) -> Path:
        """The file, folder or pattern of a local source."""
        return Path(self.location).expanduser()


def files_of_folder(kind: str, folder: Path) -> list[Path]:
    """The files of a source that names a folder: by suffix, compressed or not.

    Raises:
        MechstudyError: there is none.
    """
    suffixes = SUFFIXES[kind]
    files = (path for path in folder.rglob("*") if path.is_file())
    found = sorted(p for p in files if (p.with_suffix("") if p.suffix in _COMPRESSED else p).suffix in suffixes)
    if not found:
        there = sorted(path.name for path in folder.iterdir())
        raise MechstudyError(
            f"no {' or '.join(suffixes)} file in this folder",
            where=str(folder),
            facts={"holds": ", ".join(there[:8]) + (", ..." if there[8:] else "") or "nothing"},
            fix="name one file, or another folder",
        )
    return found


class CorpusConfig(Config):
    """Text for dictionary training, as rows of exactly ``context`` tokens."""

    source: str = "bundled"
    """`bundled` (text of the quickstart model), `self` (text sampled from the study's own model), `text:PATH`,
    `jsonl:PATH`, `parquet:PATH` or `hf:DATASET[:CONFIG][:SPLIT][@REVISION]`."""
    tokens: int = Field(gt=0)
    """Tokens to train on, rounded up to whole rows; 200,000 in a study that names no corpus."""
    held_out_tokens: int = Field(16_384, ge=0)
    """Tokens for evaluation, from other documents."""
    context: int = Field(128, ge=2)
    """Tokens of a row."""
    text_field: str = "text"
    """Field or column of a file that holds the text."""
    seed: int = Field(0, ge=0)
    """Seed of the order of documents, and of samples."""
    temperature: float = Field(0.8, gt=0)
    """Of `self`: sampling temperature."""
    sample_batch: int = Field(256, gt=0)
    """Of `self`: rows sampled at a time."""

    @field_validator("source")
    @classmethod
    def _known_source(cls, value: str) -> str:
        Source.parse(value)
        return value

    def parsed(self) -> Source:
        """The source, parsed."""
        return Source.parse(self.source)

    @property
    def train_rows(self) -> int:
        """Rows for training."""
        return -(-self.tokens // self.context)

    @property
    def held_out_rows(self) -> int:
        """Rows held out for evaluation."""
        return -(-self.held_out_tokens // self.context)

    @property
    def n_rows(self) -> int:
        """All rows."""
        return self.train_rows + self.held_out_rows
