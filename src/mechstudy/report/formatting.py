"""Text that is safe to show: tokens and anything a model says are hostile.

Jinja escapes HTML by itself; this module makes invisible characters visible, keeps data inside `<script>`
inert, names files, and writes numbers the same way on every page.
"""

# ruff: noqa: RUF001 - the characters that stand for others are the point here

from __future__ import annotations

import hashlib
import json
import math
import re
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any

NOT_AVAILABLE = "n/a"
_REPLACEMENT = "�"


def visible(token: str | None) -> str:
    """Show whitespace and unprintable characters of a token.

    A space becomes `·`, a newline `↵`, a tab `⇥`; control, format (zero-width, direction overrides) and
    unpaired surrogate characters become symbols; U+FFFD, which stands for a part of a character, stays.
    """
    return "".join(_visible_char(c) for c in token or "")


def _visible_char(c: str) -> str:
    if c == " ":
        return "·"
    if c == "\n":
        return "↵"
    if c == "\t":
        return "⇥"
    if c == "\r":
        return "␍"
    code = ord(c)
    if code < 32:
        return chr(0x2400 + code)
    category = unicodedata.category(c)
    if category == "Cs":
        return _REPLACEMENT
    if category in ("Cc", "Cf", "Zl", "Zp", "Zs", "Co"):
        return f"‹{code:04X}›"
    return c


def plain(text: str | None) -> str:
    """Text for a paragraph: spaces stay, everything else as in `visible`."""
    return "".join(c if c == " " else _visible_char(c) for c in text or "")


def jsonable(value: Any) -> Any:
    """A copy without NaN or infinities (null instead) and with string keys, so that JSON can hold it."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(k): jsonable(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [jsonable(v) for v in value]
    if value is None or isinstance(value, (str, int, bool)):
        return value
    return str(value)


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
    words = plain(name).replace("_", " ").strip()
    return words[:1].upper() + words[1:]


def number(value: float | None, digits: int = 2) -> str:
    """A number with a fixed count of decimals, a true minus sign, and scientific notation where it is tiny or huge."""
    if value is None or not math.isfinite(value):
        return NOT_AVAILABLE
    if value != 0 and (abs(value) < 0.5 * 10**-digits or abs(value) >= 1e6):
        text = f"{value:.1e}"
    else:
        return fixed(value, digits)
    return text.replace("-", "−")


def fixed(value: float | None, digits: int = 2) -> str:
    """A number with a fixed count of decimals, however small; for numbers that stand beside their interval."""
    if value is None or not math.isfinite(value):
        return NOT_AVAILABLE
    text = f"{value or 0.0:,.{digits}f}"
    return (text.lstrip("-") if float(text.replace(",", "")) == 0 else text).replace("-", "−")


def integer(value: float | None) -> str:
    """A count with thousands separators."""
    return NOT_AVAILABLE if value is None else f"{int(value):,}"


def percent(value: float | None, digits: int = 1) -> str:
    """A share in [0, 1] as a percentage."""
    return NOT_AVAILABLE if value is None else f"{number(100 * value, digits)}%"


def decimals(ci: Sequence[float | None] | None, least: int = 2) -> int:
    """Decimals of an interval and of its number: up to two more where an end would read as zero and is not."""
    ends = [end for end in ci or () if end is not None]
    enough = (d for d in range(least, least + 3) if all(not end or round(end, d) for end in ends))
    return next(enough, least)


def interval(ci: Sequence[float | None] | None, digits: int = 2) -> str:
    """`[low, high]`, with `decimals`."""
    if not has_interval(ci):
        return f"[{NOT_AVAILABLE}]"
    assert ci is not None
    low, high = (fixed(end, decimals(ci, digits)) for end in ci)
    return f"[{low}, {high}]"


def has_interval(ci: Sequence[float | None] | None) -> bool:
    """Whether both ends are known."""
    return ci is not None and len(ci) == 2 and ci[0] is not None and ci[1] is not None


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
    if n_bytes is None:
        return NOT_AVAILABLE
    value = float(n_bytes)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.2f} TB"


def significant(values: Iterable[float | None], digits: int = 4) -> list[float | None]:
    """Round to significant digits: what a chart or a graph file needs, at a third of the bytes."""
    return [None if v is None or not math.isfinite(v) else float(f"{v:.{digits}g}") for v in values]


def clip(text: str, length: int) -> str:
    """Shorten with an ellipsis."""
    return text if len(text) <= length else text[: length - 1] + "…"
