"""pydantic's errors told as a MechstudyError: file and line, the key, what is valid there, what to do."""

from __future__ import annotations

import itertools
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from pydantic import BaseModel, ValidationError

from mechstudy.core.config_schema import Located, literals, locate, models_at, names, value_at
from mechstudy.core.errors import MechstudyError, nearest
from mechstudy.core.yaml_source import Key, KeyPath, Lines, YamlSource, dotted

_MORE_SHOWN = 10


@dataclass
class _Mistake:
    """One thing to tell: at which key, what, and how to mend it."""

    path: KeyPath
    what: str
    facts: dict[str, str] = field(default_factory=dict)
    fix: str | None = None
    kind: str = ""
    needs: str = ""  # "be an integer": what a value must do, when a type says so
    given: Any = None
    near: str | None = None  # the key that a misspelt one is taken to mean


def describe(error: ValidationError, cls: type[BaseModel], source: YamlSource) -> MechstudyError:
    """The first mistake of the file as a MechstudyError; the others follow under ``also``."""
    mistakes = [_mistake(located, cls, source.data) for located in locate(error.errors(), source.data)]
    mistakes = _without_echoes(_merged(mistakes))
    lines = source.lines
    mistakes.sort(key=lambda mistake: (lines.override(mistake.path) is None, lines.line(mistake.path) or 0))
    mistakes[0] = _with_whole_override(mistakes[0], lines)
    first, *others = [
        lines.error(mistake.path, mistake.what, facts=mistake.facts, fix=mistake.fix) for mistake in mistakes
    ]
    for given in _overrides_below(mistakes[0], lines):
        if first.where != (told_at := f"--set {dotted(given)}"):
            first.facts["with"] = told_at
    if others:
        told = [f"{other.where}: {other.what}" for other in others[:_MORE_SHOWN]]
        left = len(others) - len(told)
        first.facts["also"] = "\n".join([*told, *([f"and {left} more"] if left else [])])
    return first


def _with_whole_override(mistake: _Mistake, lines: Lines) -> _Mistake:
    """A misspelt key that an override brought, with the override as it should be, to be copied."""
    path, given = lines.keys(mistake.path), lines.override(mistake.path)
    if mistake.kind != "extra_forbidden" or not mistake.near or given is None or given[: len(path)] != path:
        return mistake
    meant = dotted((*path[:-1], mistake.near, *given[len(path) :]))
    return replace(mistake, fix=f"--set {shlex.quote(f'{meant}={lines.values[given]}')}")


def _overrides_below(mistake: _Mistake, lines: Lines) -> list[KeyPath]:
    """Overrides beside a missing key, or of parts of what is wrong as a whole: they may be the reason."""
    path = lines.keys(mistake.path)
    if mistake.kind == "missing" and len(path) > 1:
        path = path[:-1]
    return [given for given in lines.overrides if len(given) > len(path) and given[: len(path)] == path]


def _mistake(located: Located, cls: type[BaseModel], data: Any) -> _Mistake:
    details, path = located.details, located.path
    kind = details["type"]
    context: Mapping[str, Any] = details.get("ctx") or {}
    given = details["input"]
    if kind == "extra_forbidden":
        return _unknown_key(path, cls, data)
    if kind == "missing":
        return _Mistake(path, "is required and not given", {}, f"add {path[-1]}: ...", kind)
    if kind == "union_tag_not_found":
        tag = str(context.get("discriminator", "kind")).strip("'")
        valid = literals(cls, data, path, tag)
        facts = {"valid": ", ".join(valid)} if valid else {}
        fix = f"add {tag}: {valid[0] if len(valid) == 1 else '...'}"
        return _Mistake((*path, tag), "is required and not given", facts, fix, kind)
    if kind == "union_tag_invalid":
        tag = str(context["discriminator"]).strip("'")
        return _not_one_of((*path, tag), str(context["tag"]), _quoted(str(context["expected_tags"])), kind)
    if kind in ("literal_error", "enum"):
        expected = _quoted(str(context["expected"]))
        if expected and isinstance(given, str):
            mistake = _not_one_of(path, given, expected, kind)
            mistake.needs = f"be {expected[0]}" if len(expected) == 1 else f"be one of {', '.join(expected)}"
            mistake.given = given
            return mistake
    if kind == "value_error":
        return _raised(path, context.get("error"), details["msg"])
    if kind == "string_type" and isinstance(given, (int, float)):
        return _Mistake(path, f"must be text, not {_shown(given)}", {}, f'in quotes: "{_shown(given)}"', kind)
    said = _plain_words(details["msg"])
    if not said.startswith("must "):
        return _Mistake(path, said, kind=kind)
    needs = said.removeprefix("must ")
    return _Mistake(path, f"{said}, not {_shown(given)}", kind=kind, needs=needs, given=given)


def _raised(path: KeyPath, error: object, message: str) -> _Mistake:
    """What a validator raised. A MechstudyError's ``where`` names a field below the one that was checked."""
    if isinstance(error, MechstudyError):
        below: tuple[Key, ...] = ()
        if error.where:
            below = tuple(int(part) if part.isdecimal() else part for part in error.where.split("."))
        return _Mistake((*path, *below), error.what, dict(error.facts), error.fix, "value_error")
    return _Mistake(path, str(error) if error is not None else message, kind="value_error")


_WORDS = (  # pydantic's words -> the words of someone who writes YAML
    (r", (unable to|got a number|too large|too small).*$", ""),
    (r"^Input should ", "must "),
    (r"a valid (dictionary|mapping).*$", "a mapping of keys to values"),
    (r"a valid (list|tuple|array|set)\b", "a list"),
    (r"a valid string", "text"),
    (r"a valid boolean", "true or false"),
    (r"a valid integer", "an integer"),
    (r"a valid number", "a number"),
)


def _plain_words(message: str) -> str:
    """``Input should be a valid integer, unable to parse ...`` -> ``must be an integer``."""
    for pattern, words in _WORDS:
        message = re.sub(pattern, words, message)
    return message[:1].lower() + message[1:]


def _shown(given: object) -> str:
    if given is None:
        return "empty"
    if isinstance(given, bool):
        return str(given).lower()
    if isinstance(given, (list, tuple)):
        return f"a list of {len(given)}" if len(repr(given)) > 40 else repr(list(given))
    if isinstance(given, dict):
        return "a mapping of keys to values"
    text = repr(given)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _not_one_of(path: KeyPath, given: str, valid: list[str], kind: str) -> _Mistake:
    close = nearest(given, valid)
    fix = f"{path[-1]}: {close}" if close and isinstance(path[-1], str) else close
    return _Mistake(path, f"{given!r} is not one of {', '.join(valid)}", {}, fix, kind)


def _unknown_key(path: KeyPath, cls: type[BaseModel], data: Any) -> _Mistake:
    parents = models_at(cls, data, path[:-1])
    valid = list(dict.fromkeys(itertools.chain.from_iterable(names(parent) for parent in parents)))
    taken = value_at(data, path[:-1])
    free = [name for name in valid if not isinstance(taken, dict) or name not in taken]
    close = nearest(str(path[-1]), free) or nearest(str(path[-1]), valid)
    facts = {} if close else {"valid": ", ".join(valid)}
    fix = close if close else f"remove {path[-1]}"
    return _Mistake(path, "unknown key", facts, fix, "extra_forbidden", near=close)


def _quoted(text: str) -> list[str]:
    """The values in pydantic's ``'a', 'b' or 'c'``."""
    return [first or second for first, second in re.findall(r"'((?:[^'\\]|\\.)*)'|\"([^\"]*)\"", text)]


def _merged(mistakes: list[_Mistake]) -> list[_Mistake]:
    """One mistake for each key: a union tells one error for each of its members."""
    by_path: dict[KeyPath, _Mistake] = {}
    for mistake in mistakes:
        known = by_path.setdefault(mistake.path, mistake)
        if known is mistake or known.what == mistake.what:
            continue
        if known.needs and mistake.needs:
            if mistake.needs not in known.needs:
                known.needs = f"{known.needs} or {mistake.needs.removeprefix('be ')}"
            known.what = f"must {known.needs}, not {_shown(known.given)}"
            known.fix = known.fix or mistake.fix
        elif mistake.kind == "value_error":  # a validator's own words say more than a type's
            by_path[mistake.path] = mistake
    return list(by_path.values())


def _without_echoes(mistakes: list[_Mistake]) -> list[_Mistake]:
    """Without "a key is missing" where an unknown key beside it is that key misspelt."""
    meant = {(*m.path[:-1], m.near) for m in mistakes if m.kind == "extra_forbidden" and m.near}
    return [m for m in mistakes if not (m.kind == "missing" and m.path in meant)]
