"""Numbers in environment variables, which a shell, a cluster or torchrun sets."""

from __future__ import annotations

from collections.abc import Mapping

from mechstudy.core.errors import MechstudyError


def whole_variable(environment: Mapping[str, str], name: str, default: int | None = None, *, least: int = 0) -> int:
    """A whole number of at least ``least``; an empty variable counts as unset.

    Raises:
        MechstudyError: it holds something else, or is not set and there is no default.
    """
    text = environment.get(name, "").strip()
    if not text and default is not None:
        return default
    if not text.isdecimal() or int(text) < least:
        raise MechstudyError(
            f"the environment variable {name} is {text!r}, not a whole number of at least {least}"
            if text
            else f"the environment variable {name} is not set",
            fix=f"unset {name}, or set it to one",
        )
    return int(text)
