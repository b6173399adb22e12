"""Which activations to capture, and the exact sizes of a store's files. Imports no torch."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import GetCoreSchemaHandler, field_validator
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
_SHORTEST_PROMPT = 5  # tokens: last-5 of every prompt is five rows


def site_bytes(n_rows: int, width: int, dtype: str) -> int:
    """Exact bytes of one site's ``.bin`` file, which has no header."""
    return n_rows * width * ITEM_SIZES[dtype]


def scales_per_row(width: int) -> int:
    """Scales of one int8 row: one for every 64 coordinates."""
    return -(-width // SCALE_BLOCK)


def scale_bytes(n_rows: int, width: int, dtype: str) -> int:
    """Exact bytes of one site's ``.scales.bin`` file; 0 for a dtype without scales."""
    return n_rows * scales_per_row(width) * SCALE_ITEM_SIZE if dtype == "int8" else 0


def store_bytes(n_rows: int, widths: Iterable[int], dtype: str) -> int:
    """Exact bytes of all row files of a store: activations, scales, norms and index.

    The sizes of the other files do not grow with the rows.
    """
    widths = list(widths)
    rows = sum(site_bytes(n_rows, width, dtype) + scale_bytes(n_rows, width, dtype) for width in widths)
    return rows + n_rows * (NORM_ITEM_SIZE * len(widths) + INDEX_ITEM_SIZE)


def store_files(n_rows: int, sites: Mapping[str, int], dtype: str) -> dict[str, int]:
    """Bytes of every file of a store that grows with its rows, exactly; ``sites`` maps names to widths."""
    files = {"index.bin": n_rows * INDEX_ITEM_SIZE}
    for site, width in sites.items():
        files[f"{site}.bin"] = site_bytes(n_rows, width, dtype)
        files[f"{site}.norms.bin"] = n_rows * NORM_ITEM_SIZE
        if dtype == "int8":
            files[f"{site}.scales.bin"] = scale_bytes(n_rows, width, dtype)
    return files


def same_for_every_prompt(positions: Sequence[str]) -> bool:
    """Whether every prompt, however short, has the same number of these positions."""
    return all(item == "last" or (item.startswith("last-") and int(item[5:]) <= _SHORTEST_PROMPT) for item in positions)


@dataclass(frozen=True)
class Positions:
    """Token positions of a prompt to capture: all, the last N, or the behaviour's named positions.

    Written as ``all``, ``last-5``, ``last``, a name, or a list of these, which means their union.
    """

    items: tuple[str, ...]

    @classmethod
    def last(cls, n: int) -> Positions:
        """The last ``n`` tokens."""
        return cls.parse(f"last-{n}")

    @classmethod
    def parse(cls, value: Positions | str | Sequence[str]) -> Positions:
        """Positions as users write them.

        Raises:
            MechstudyError: an empty list, an empty name, or ``last-0``.
        """
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
        """The positions as users write them: a string for a single item, else a list."""
        return self.items[0] if len(self.items) == 1 else list(self.items)

    def resolve(self, positions: Mapping[str, int], length: int) -> tuple[int, ...]:
        """Token indices, sorted and unique, in a prompt of ``length`` tokens with these named positions.

        ``last-N`` of a shorter prompt is the whole prompt. ``last`` is the last token unless a position has that name.

        Raises:
            MechstudyError: a name that the prompt does not have, or that is outside of it.
        """
        indices: set[int] = set()
        for item in self.items:
            if item in positions:
                indices.add(self._inside(item, positions[item], length))
            elif item == "all":
                indices |= set(range(length))
            elif m := re.fullmatch(r"last(?:-(\d+))?", item):
                indices |= set(range(max(0, length - int(m[1] or 1)), length))
            else:
                guess = nearest(item, [*positions, "all", "last"])
                raise MechstudyError(
                    f"positions: no position is called {item!r}",
                    facts={"positions": ", ".join(positions) or "none are named", "also": "all, last-N"},
                    fix=f"did you mean {guess!r}?" if guess else None,
                )
        return tuple(sorted(indices))

    @staticmethod
    def _inside(name: str, index: int, length: int) -> int:
        if not -length <= index < length:
            raise MechstudyError(f"position {name!r} is token {index} of a prompt of {length} tokens")
        return index % length

    def count(self, length: int, positions: Mapping[str, int] | None = None) -> int:
        """Number of rows of one prompt: exact if its named positions are passed, else an upper bound."""
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
    """Sites to capture."""
    layers: str | int | tuple[int | str, ...] = "all"
    """Layers to capture: `all`, `10-24`, `3,5,8-10` or a list."""
    dtype: Dtype = "bfloat16"
    """Precision of stored rows."""

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
        """The sites, ordered by layer and then as written.

        Raises:
            MechstudyError: a layer that the model does not have.
        """
        return tuple(Site(kind, layer) for layer in parse_layers(self.layers, n_layers) for kind in self.sites)


class PromptCaptureConfig(CaptureConfig):
    """Sites and token positions to capture over a behaviour's clean or corrupted prompts, or both."""

    sites: tuple[SiteKind, ...] = ("resid_post", "attn_out", "mlp_out")
    """Sites to capture."""
    positions: Positions = Positions(("last-5",))
    """`all`, `last`, `last-5`, a named position of the behaviour, or a list of these."""
    splits: tuple[Literal["train", "test"], ...] = ("train",)
    """Splits whose prompts are captured."""
    versions: tuple[Literal["clean", "corrupted"], ...] = ("clean", "corrupted")
    """Prompts of a pair that are captured."""

    @field_validator("splits", "versions")
    @classmethod
    def _some_of_each(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value or len(set(value)) < len(value):
            raise MechstudyError("name at least one, each once", facts={"named": ", ".join(value) or "none"})
        return value
