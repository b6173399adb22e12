"""Chat templates that write the date into a prompt: whether a model's does, and rendering them at a fixed date.

Imports no torch.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, tzinfo
from pathlib import Path
from typing import Any, Self

_CLOCK = "strftime_now"  # all that transformers gives a template to read the clock with
_DATES = (datetime(2001, 2, 3, 4, 5, 6), datetime(2018, 11, 27, 16, 48, 59))  # no part in common


def chat_template(folder: Path) -> str | None:
    """The default chat template of a model's folder; None if it has none."""
    with suppress(OSError, UnicodeDecodeError):
        return (folder / "chat_template.jinja").read_text()
    for name in ("chat_template.json", "tokenizer_config.json"):
        with suppress(OSError, ValueError, AttributeError, KeyError, TypeError):
            template = json.loads((folder / name).read_text())["chat_template"]
            if isinstance(template, list):
                template = {item["name"]: item["template"] for item in template}.get("default")
            if isinstance(template, str):
                return template
    return None


def reads_the_clock(template: str | None) -> bool:
    """Whether a chat template renders a conversation of one turn differently at another date or time."""
    if template is None or _CLOCK not in template:
        return False
    try:
        first, second = (_rendered(template, moment) for moment in _DATES)
    except Exception:  # it needs what only its tokenizer has; it names the clock, so it counts
        return True
    return first != second


@contextmanager
def fixed_clock(date: str | None) -> Iterator[None]:
    """Puts the clock that chat templates read to the first minute of a day.

    Replaces the clock of transformers' module: functions that are passed to a template reach it as text.

    Args:
        date: ``YYYY-MM-DD``; None leaves the clock as it is.
    """
    if date is None:
        yield
        return
    today = date  # as a text for good, also inside the class
    from transformers.utils import chat_template_utils  # imports torch

    class Clock(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> Self:
            return cls.fromisoformat(today).replace(tzinfo=tz)

    module: Any = chat_template_utils
    before = module.datetime
    module.datetime = Clock
    try:
        yield
    finally:
        module.datetime = before


def _rendered(template: str, moment: datetime) -> str:
    from jinja2.sandbox import ImmutableSandboxedEnvironment  # only where a template names the clock

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = lambda value, **_: json.dumps(value)
    environment.globals["raise_exception"] = _refuse
    turn = [{"role": "user", "content": "text"}]
    return environment.from_string(template).render(
        messages=turn, add_generation_prompt=True, bos_token="", eos_token="", **{_CLOCK: moment.strftime}
    )


def _refuse(message: str) -> None:
    raise ValueError(message)
