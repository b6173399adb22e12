"""Text and numbers as every page shows them, with the invisible characters of tokens made visible."""

# ruff: noqa: RUF001 - the characters that stand for others are the point here

from __future__ import annotations

import hashlib
import io
import json
import math
import re
import shlex
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from mechstudy.core.jsonio import jsonable
from mechstudy.core.sizes import human
from mechstudy.statistics.clusters import ALL_EQUAL, ONE_GROUP

NOT_AVAILABLE = "n/a"
_SYMBOLS = {"\n": "↵", "\t": "⇥", "\r": "␍"}
_INVISIBLE = ("Cc", "Cf", "Zl", "Zp", "Zs", "Co")  # categories of Unicode


def visible(text: str | None, space: str = "·") -> str:
    """Text with its whitespace and unprintable characters shown.

    A space becomes ``space``, a newline `↵`, a tab `⇥`; control, format (zero-width, direction overrides) and
    unpaired surrogate characters become symbols; U+FFFD, which stands for a part of a character, stays.
    """
    return "".join(space if c == " " else _SYMBOLS.get(c) or _symbol(c) for c in text or "")


def _symbol(c: str) -> str:
    code, category = ord(c), unicodedata.category(c)
    if code < 32:
        return chr(0x2400 + code)
    if category == "Cs":
        return "\ufffd"
    return f"‹{code:04X}›" if category in _INVISIBLE else c


def plain(text: str | None) -> str:
    """Text for a paragraph: `visible`, with spaces as they are."""
    return visible(text, " ")


def script_json(value: Any) -> str:
    """JSON that is inert in a script: ASCII only, and no `<`, `>` or `&` survives in a string."""
    text = json.dumps(jsonable(value), ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def slug(name: str) -> str:
    """A file name for a unit, behaviour or graph: letters, digits and dashes, and a hash where it had to change."""
    safe = re.sub(r"[^A-Za-z0-9_]+", "-", name).strip("-")[:60]
    if safe == name:
        return safe
    return f"{safe or 'x'}-{hashlib.sha256(name.encode('utf-8', 'replace')).hexdigest()[:6]}"


def title(name: str) -> str:
    """`subject_verb_agreement` -> `Subject verb agreement`."""
    return capitalised(plain(name).replace("_", " ").strip())


def capitalised(text: str) -> str:
    """Text with its first letter in upper case, the others as they are."""
    return text[:1].upper() + text[1:]


def number(value: float | None, digits: int = 2, *, scientific: bool = True) -> str:
    """A number with a fixed count of decimals and a true minus sign.

    Args:
        value: the number; None and what is not finite read `n/a`.
        digits: decimals.
        scientific: tiny and huge numbers in scientific notation; not for a number that stands beside its interval.
    """
    if value is None or not math.isfinite(value):
        return NOT_AVAILABLE
    if scientific and value != 0 and (abs(value) < 0.5 * 10**-digits or abs(value) >= 1e6):
        return f"{value:.1e}".replace("-", "−")
    text = f"{value:,.{digits}f}"
    return (text.lstrip("-") if float(text.replace(",", "")) == 0 else text).replace("-", "−")


def percent(share: float | None, digits: int = 1) -> str:
    """A share in [0, 1] as a percentage."""
    return NOT_AVAILABLE if share is None else f"{number(100 * share, digits)}%"


def whole_percent(share: float | None) -> str:
    """A share as a percentage without decimals, however small."""
    return NOT_AVAILABLE if share is None else f"{number(100 * share, 0, scientific=False)}%"


def integer(value: float | None) -> str:
    """A count with thousands separators."""
    return NOT_AVAILABLE if value is None else f"{int(value):,}"


def decimals(ci: Sequence[float | None] | None, least: int = 2) -> int:
    """Decimals of an interval and of its number: up to two more where an end would read as zero and is not."""
    ends = [end for end in ci or () if end is not None]
    enough = (d for d in range(least, least + 3) if all(not end or round(end, d) for end in ends))
    return next(enough, least)


def beside(value: float | None, ci: Sequence[float | None] | None) -> str:
    """A number that stands beside its interval, with the interval's decimals."""
    return number(value, decimals(ci), scientific=False)


def ends_of(ci: Sequence[float | None] | None) -> tuple[float, float] | None:
    """Both ends of an interval; None where one is missing."""
    if ci is None or len(ci) != 2 or ci[0] is None or ci[1] is None:
        return None
    return float(ci[0]), float(ci[1])


def interval(ends: Sequence[float], digits: int = 2) -> str:
    """`[low, high]`, with `decimals`."""
    return f"[{', '.join(number(end, decimals(ends, digits), scientific=False) for end in ends)}]"


def interval_of(record: Mapping[str, Any] | None, field: str, value: str, digits: int = 2) -> str:
    """The interval in a record's ``field``, or why its ``value`` has none: `n/a (one group)`."""
    ends, missing = interval_or_reason(record, field, value)
    return interval(ends, digits) if ends else no_interval(missing)


def share_interval_of(record: Mapping[str, Any] | None, field: str, value: str, digits: int = 1) -> str:
    """`interval_of` for a share, in per cent."""
    ends, missing = interval_or_reason(record, field, value)
    return f"[{', '.join(percent(end, digits) for end in ends)}]" if ends else no_interval(missing)


def interval_or_reason(
    record: Mapping[str, Any] | None, field: str, value: str
) -> tuple[tuple[float, float] | None, str | None]:
    """The interval in a record's ``field``, or None and why its ``value`` has none.

    Statistics write ``<field>_missing`` beside an interval that they leave out because all values are equal. Earlier
    versions wrote an interval without width there. One that is null without a reason is of a single group.
    """
    record = record or {}
    ends = ends_of(record.get(field))
    if ends is None:
        measured = field in record and record.get(value) is not None
        return None, str(record.get(f"{field}_missing") or ONE_GROUP) if measured else None
    return (None, ALL_EQUAL) if ends[0] == ends[1] else (ends, None)


def no_interval(reason: str | None) -> str:
    """`n/a`, with the reason."""
    return f"{NOT_AVAILABLE} ({reason})" if reason else NOT_AVAILABLE


def p_value(p: float | None) -> str:
    """`p = 0.012`, or `p < 0.001`."""
    if p is None:
        return "p not available"
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}" if p < 0.1 else f"p = {p:.2f}"


def duration(seconds: float | None) -> str:
    """Seconds in the unit a reader would choose."""
    if seconds is None:
        return NOT_AVAILABLE
    if seconds < 1:
        return f"{1000 * seconds:.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    if seconds < 3600:
        return f"{int(seconds // 60)} min {int(seconds % 60):02d} s"
    return f"{int(seconds // 3600)} h {int(seconds % 3600 // 60):02d} min"


def size(n_bytes: float | None) -> str:
    """Bytes in powers of 1,000."""
    return NOT_AVAILABLE if n_bytes is None else human(n_bytes)


def real(value: Any) -> float | None:
    """A CSV or JSON cell as a float; None where it is empty, null or not finite."""
    try:
        result = float(value)
    except (TypeError, ValueError):
        return None
    return result if math.isfinite(result) else None


def significant(values: Iterable[float | None], digits: int = 4) -> list[float | None]:
    """Round to significant digits: what a chart or a graph file needs, at a third of the bytes."""
    return [None if v is None or not math.isfinite(v) else float(f"{v:.{digits}g}") for v in values]


def clip(text: str, length: int) -> str:
    """Shorten with an ellipsis."""
    return text if len(text) <= length else text[: length - 1] + "…"


def yaml_text(value: Any) -> str:
    """A value as YAML."""
    buffer = io.StringIO()
    yaml = YAML()
    yaml.default_flow_style = False
    yaml.width = 100
    yaml.dump(jsonable(value), buffer)
    return buffer.getvalue().removesuffix("...\n")


def moment(time: float | str | None) -> str:
    """A time, as seconds since 1970 or in ISO format, to the second."""
    if isinstance(time, (int, float)):
        return datetime.fromtimestamp(time).astimezone().strftime("%Y-%m-%d %H:%M:%S")
    return str(time or "")[:19].replace("T", " ")


def command_line(argv: Sequence[str] | None) -> str:
    """A command as one types it, its program by name."""
    return plain(shlex.join([Path(argv[0]).name, *argv[1:]])) if argv else ""
