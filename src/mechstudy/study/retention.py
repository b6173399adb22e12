"""How long what a unit wrote is kept: one table for runs, archives and `clean`. Torch-free.

``keep``: for good, and in archives. ``regenerate``: until `mechstudy clean`, and archives hold its manifest alone.
``discard``: the run itself deletes it as soon as no unit needs it any more. Only the payload of an artifact ever goes:
its manifest and what is small stay.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Literal

from mechstudy.core.errors import MechstudyError, nearest

Retention = Literal["keep", "regenerate", "discard"]


@dataclass(frozen=True)
class Rule:
    """``payload``: the files (patterns) that a class other than ``keep`` speaks of; none where all is kept always."""

    retention: Retention
    payload: tuple[str, ...] = ()


# A kind is a phase; activations of prompts are small and looked at by people, those of the corpus are neither.
RULES: Mapping[str, Rule] = {
    "model": Rule("keep"),
    "prompts": Rule("keep"),
    "baseline": Rule("keep"),
    "corpus": Rule("regenerate", ("tokens.safetensors",)),
    "capture": Rule("discard", ("*.bin",)),
    "capture_prompts": Rule("regenerate", ("*.bin",)),
    "stream": Rule("regenerate", ("layers/*", "variants/*")),  # each dictionary is in its own artifact too
    "train": Rule("keep", ("dictionary/*",)),
    "variant": Rule("keep", ("dictionary/*",)),
    "attribute": Rule("keep"),
    "features": Rule("keep"),
    "intervene": Rule("keep"),
    "report": Rule("keep"),
}
_ALWAYS_KEPT = Rule("keep")


def kind_of(phase: str, spec: Mapping[str, Any]) -> str:
    """The row of the table that a unit or an artifact belongs to."""
    return "capture_prompts" if phase == "capture" and "positions" in spec else phase


def rule_of(phase: str, spec: Mapping[str, Any], retain: Mapping[str, Retention] | None = None) -> Rule:
    """A unit's rule, where the study says otherwise (``storage.retain``) with that class. Unknown phases are kept."""
    kind = kind_of(phase, spec)
    rule = RULES.get(kind, _ALWAYS_KEPT)
    return Rule((retain or {}).get(kind, rule.retention), rule.payload)


def payload_of(names: Iterable[str], patterns: Iterable[str]) -> list[str]:
    """The file names that match, sorted (``*`` also crosses folders)."""
    wanted = tuple(patterns)
    return sorted(name for name in names if any(fnmatchcase(name, pattern) for pattern in wanted))


def check_kinds(retain: Mapping[str, Retention]) -> None:
    """Refuses a kind that there is not, and one that is always kept."""
    free = ", ".join(kind for kind, rule in RULES.items() if rule.payload)
    for kind, retention in retain.items():
        if kind not in RULES:
            guess = nearest(kind, RULES)
            fix = f"did you mean {guess!r}?" if guess else None
            raise MechstudyError(f"there is no kind of artifact {kind!r}", facts={"kinds": free}, fix=fix)
        if retention != "keep" and not RULES[kind].payload:
            raise MechstudyError(
                f"{kind} is always kept: it is small, and the report reads it",
                facts={"kinds that may go": free},
                fix=f"leave out {kind}",
            )
