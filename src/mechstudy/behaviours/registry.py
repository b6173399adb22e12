"""The built-in behaviours, by name."""

from __future__ import annotations

from mechstudy.behaviours import (
    antonym,
    country_capital,
    indirect_object_identification,
    subject_verb_agreement,
)
from mechstudy.behaviours.generator import Behaviour
from mechstudy.core.errors import MechstudyError, nearest

__all__ = ["BEHAVIOURS", "Behaviour", "behaviour"]

BEHAVIOURS: dict[str, Behaviour] = {
    module.BEHAVIOUR.name: module.BEHAVIOUR
    for module in (subject_verb_agreement, indirect_object_identification, country_capital, antonym)
}


def behaviour(name: str) -> Behaviour:
    """The built-in behaviour of this name.

    Raises:
        MechstudyError: there is none; the message lists those that exist.
    """
    if name not in BEHAVIOURS:
        guess = nearest(name, BEHAVIOURS)
        raise MechstudyError(
            f"unknown behaviour {name!r}",
            facts={"behaviours": ", ".join(BEHAVIOURS)},
            fix=guess or "use one of these, or bring your own prompts as JSONL",
        )
    return BEHAVIOURS[name]
