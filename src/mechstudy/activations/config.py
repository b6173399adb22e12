"""What to capture and from which text; torch-free, so that plans and help stay quick."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, GetCoreSchemaHandler, field_validator
from pydantic_core import CoreSchema, core_schema

from mechstudy.core.config import Config
from mechstudy.core.errors import MechstudyError, nearest
from mechstudy.models.sites import SITES, Site, SiteKind, parse_layers

Dtype = Literal["bfloat16", "float32", "int8"]
ITEM_SIZES: dict[str, int] = {"bfloat16": 2, "float32": 4, "int8": 1}
SCALE_BLOCK = 64  # int8: coordinates that share a scale
SCALE_ITEM_SIZE = 4  # float32
INDEX_ITEM_SIZE = 12  # document, position, token: int32 each
NORM_ITEM_SIZE = 4  # float32 norm of each row, per site
FILE_KINDS = ("text", "jsonl", "parquet")
SPLITS = ("train", "validation", "valid", "test", "dev")


def site_bytes(n_rows: int, width: int, dtype: str) -> int:
    """Bytes of one site's ``.bin`` file, exactly: there is no header."""
    return n_rows * width * ITEM_SIZES[dtype]


def scales_per_row(width: int) -> int:
    """Scales of one int8 row: one for every 64 coordinates, the last block may be shorter."""
    return -(-width // SCALE_BLOCK)


def scale_bytes(n_rows: int, width: int, dtype: str) -> int:
    """Bytes of one site's ``.scales.bin`` file, exactly; 0 for a dtype without scales."""
    return n_rows * scales_per_row(width) * SCALE_ITEM_SIZE if dtype == "int8" else 0


def store_bytes(n_rows: int, widths: Iterable[int], dtype: str) -> int:
    """Bytes of all row files of a store, exactly: activations, scales, norms and index.

    Only ``store.json`` and ``statistics.safetensors`` come on top; their size does not grow with the rows.
    """
    widths = list(widths)
    rows = sum(site_bytes(n_rows, width, dtype) + scale_bytes(n_rows, width, dtype) for width in widths)
    return rows + n_rows * (NORM_ITEM_SIZE * len(widths) + INDEX_ITEM_SIZE)


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
        """Read ``bundled``, ``sampled``, ``text:PATH``, ``jsonl:PATH``, ``parquet:PATH`` or ``hf:...``.

        ``hf:DATASET[:CONFIG][:SPLIT][@REVISION]``: a single name after the dataset is a split where it is one
        of the usual split names and a configuration otherwise.

        Raises:
            MechstudyError: unknown kind, or nothing after the colon.
        """
        kind, _, rest = text.partition(":")
        if kind in ("bundled", "sampled"):
            if rest:
                raise MechstudyError(f"{kind!r} takes nothing after it", fix=f"write {kind}")
            return cls("bundled" if kind == "bundled" else "sampled")
        if kind not in (*FILE_KINDS, "hf"):
            guess = nearest(kind, ["bundled", "sampled", *FILE_KINDS, "hf"])
            raise MechstudyError(
                f"{text!r} is not a corpus source",
                facts={"sources": "bundled, sampled, text:PATH, jsonl:PATH, parquet:PATH, hf:DATASET[:CONFIG]"},
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
        if len(parts) == 1 and parts[0] in SPLITS:
            parts = ["", *parts]
        if not name or len(parts) > 2:
            raise MechstudyError(f"'hf:{rest}' is not a dataset", fix="write hf:DATASET[:CONFIG][:SPLIT][@REVISION]")
        config, split = (*parts, "", "")[:2]
        return cls("hf", name, config or None, split or "train", revision or None)

    @property
    def path(self) -> Path:
        return Path(self.location).expanduser()


class CorpusConfig(Config):
    """Text for dictionary training, as rows of exactly ``context`` tokens.

    ``tokens`` are for training and ``held_out_tokens`` for evaluation; both are rounded up to whole rows, and
    come from different source documents.
    """

    source: str = "bundled"
    tokens: int = Field(gt=0)
    held_out_tokens: int = Field(16_384, ge=0)
    context: int = Field(128, ge=2)
    text_field: str = "text"
    seed: int = Field(0, ge=0)
    temperature: float = Field(0.8, gt=0)
    sample_batch: int = Field(256, gt=0)

    @field_validator("source")
    @classmethod
    def _known_source(cls, value: str) -> str:
        Source.parse(value)
        return value

    def parsed(self) -> Source:
        return Source.parse(self.source)

    @property
    def train_rows(self) -> int:
        return -(-self.tokens // self.context)

    @property
    def held_out_rows(self) -> int:
        return -(-self.held_out_tokens // self.context)

    @property
    def n_rows(self) -> int:
        return self.train_rows + self.held_out_rows


@dataclass(frozen=True)
class Positions:
    """Which tokens of a prompt are captured: all, the last N, or the behaviour's named positions.

    Written ``all``, ``last-5``, ``last``, a name, or a list of those, whose union is taken.
    """

    items: tuple[str, ...]

    @classmethod
    def last(cls, n: int) -> Positions:
        return cls.parse(f"last-{n}")

    @classmethod
    def parse(cls, value: Positions | str | Sequence[str]) -> Positions:
        """Raises MechstudyError on an empty list, an empty name or ``last-0``."""
        if isinstance(value, Positions):
            return value
        items = (value,) if isinstance(value, str) else tuple(value)
        fix = "write all, last-5, or a list of the behaviour's position names"
        if not items:
            raise MechstudyError("no position is named", fix=fix)
        for item in items:
            if not isinstance(item, str) or not item.strip():
                raise MechstudyError(f"{item!r} does not name a position", fix=fix)
            if re.fullmatch(r"last-0+", item):
                raise MechstudyError(f"{item!r} captures nothing", fix=fix)
        return cls(items)

    @property
    def value(self) -> str | list[str]:
        """As written in a study: a string for a single item, else a list."""
        return self.items[0] if len(self.items) == 1 else list(self.items)

    def resolve(self, positions: Mapping[str, int], length: int) -> tuple[int, ...]:
        """Token indices, sorted and unique, in a prompt of ``length`` tokens with these named positions.

        ``last-N`` of a shorter prompt is the whole prompt. ``last`` is the last token unless a position has
        that name.

        Raises:
            MechstudyError: a name that the prompt does not have, or that points outside of it.
        """
        found: set[int] = set()
        for item in self.items:
            if item in positions:
                found.add(self._inside(item, positions[item], length))
            elif item == "all":
                found |= set(range(length))
            elif m := re.fullmatch(r"last(?:-(\d+))?", item):
                found |= set(range(max(0, length - int(m[1] or 1)), length))
            else:
                guess = nearest(item, [*positions, "all", "last"])
                raise MechstudyError(
                    f"positions: no position is called {item!r}",
                    facts={"positions": ", ".join(positions) or "none are named", "also": "all, last-N"},
                    fix=f"did you mean {guess!r}?" if guess else None,
                )
        return tuple(sorted(found))

    @staticmethod
    def _inside(name: str, index: int, length: int) -> int:
        if not -length <= index < length:
            raise MechstudyError(f"position {name!r} is token {index} of a prompt of {length} tokens")
        return index % length

    def count(self, length: int, positions: Mapping[str, int] | None = None) -> int:
        """Number of rows of one prompt: exact with its named positions, else at most so many."""
        if positions is not None:
            return len(self.resolve(positions, length))
        last = [int(m[1] or 1) for item in self.items if (m := re.fullmatch(r"last(?:-(\d+))?", item))]
        names = sum(item != "all" and not re.fullmatch(r"last(-\d+)?", item) for item in self.items)
        return length if "all" in self.items else min(length, max(last, default=0) + names)

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(
            cls._validate, serialization=core_schema.plain_serializer_function_ser_schema(lambda p: p.value)
        )

    @classmethod
    def _validate(cls, value: Any) -> Positions:
        if not isinstance(value, Positions | str | list | tuple):
            raise ValueError("positions are all, last-N, or a list of names")
        return cls.parse(value)


class CaptureConfig(Config):
    """Sites to capture over a corpus, for dictionary training."""

    sites: tuple[SiteKind, ...] = ("mlp_in", "mlp_out")
    layers: str | int | tuple[int | str, ...] = "all"
    dtype: Dtype = "bfloat16"

    @field_validator("sites")
    @classmethod
    def _some_sites(cls, value: tuple[SiteKind, ...]) -> tuple[SiteKind, ...]:
        if not value:
            raise MechstudyError("no site is named", facts={"sites": " ".join(SITES)})
        if len(set(value)) < len(value):
            raise MechstudyError("a site is named twice", facts={"sites": " ".join(value)})
        return value

    @field_validator("layers")
    @classmethod
    def _readable_layers(cls, value: Any) -> Any:
        written = [value] if isinstance(value, str | int) else value
        named = [part for item in written for part in str(item).split(",") if part.strip() != "all"]
        if named or not written:
            parse_layers(",".join(named), None)
        return value

    def resolve_sites(self, n_layers: int) -> tuple[Site, ...]:
        """The sites by layer, then by the order written.

        Raises:
            MechstudyError: a layer that the model does not have.
        """
        return tuple(Site(kind, layer) for layer in parse_layers(self.layers, n_layers) for kind in self.sites)


class PromptCaptureConfig(CaptureConfig):
    """Sites and token positions to capture over a behaviour's prompts, clean, corrupted or both."""

    sites: tuple[SiteKind, ...] = ("resid_post", "attn_out", "mlp_out")
    positions: Positions = Positions(("last-5",))
    splits: tuple[Literal["train", "test"], ...] = ("train",)
    versions: tuple[Literal["clean", "corrupted"], ...] = ("clean", "corrupted")

    @field_validator("splits", "versions")
    @classmethod
    def _some_of_each(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value or len(set(value)) < len(value):
            raise MechstudyError("name at least one, each once", facts={"given": ", ".join(value) or "none"})
        return value
