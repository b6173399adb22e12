"""Published shapes of prompt files, read by name: a row of the file becomes a row with mechstudy's keys."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mechstudy.behaviours.readers import Broken, Row

COUNTERFACTUAL = "_counterfactual"
_GLUED = ("\n", "\t", '"', "'", "(", "[", "{", "/", "-", "_", "$")  # an answer follows these without a space


Convert = Callable[[Row, str | None], Row]
"""Of a row and the name of the counterfactual (None for the shape's usual one), the row with mechstudy's keys."""


def converted(name: str, row: Row, counterfactual: str | None) -> Row:
    """The row with mechstudy's keys.

    Raises:
        Broken: the row is not of this shape, or has a value that is not of it.
    """
    convert = _conversion(name, row)
    if convert is None:
        expected = " | ".join(", ".join(sorted(keys)) for keys in FORMATS[name])
        raise Broken(
            f"not of the shape {name}, whose keys are {expected}",
            f"this line has {', '.join(map(str, row)) or 'no keys'}: another format, or columns:",
            f"not of the shape {name}",
        )
    return convert(row, counterfactual)


def format_of(row: Mapping[str, Any]) -> str | None:
    """The name of the first shape that the row has, None if it has none of them."""
    if row.keys() >= _OURS:
        return None
    return next((name for name in FORMATS if _conversion(name, row) is not None), None)


def _conversion(name: str, row: Mapping[str, Any]) -> Convert | None:
    """The conversion of the first shape of a format whose keys the row has."""
    return next((convert for keys, convert in FORMATS[name].items() if keys <= row.keys()), None)


def text_of(row: Mapping[str, Any], key: str) -> str:
    """A value as text; whole numbers, as dataset files hold years and sums, become their digits."""
    value = row.get(key)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str) or not value:
        raise Broken(f"{key} is {str(value)[:40]!r}, not a text", f"{key}: a non-empty text")
    return value


def _pair(clean: str, corrupted: str, answer: str, wrong: str, **more: Any) -> Row:
    """The row of a pair, with the space between prompt and answer where the shape leaves it out."""
    before = clean.rstrip(" ")
    space = "" if answer[0].isspace() or before.endswith(_GLUED) else " "
    return {
        "clean": before,
        "corrupted": corrupted.rstrip(" "),
        "answer": space + answer,
        "wrong_answer": wrong if wrong[0].isspace() else space + wrong,
    } | {key: value for key, value in more.items() if value}


def _feature_circuits(row: Row, _: str | None) -> Row:
    values = (text_of(row, key) for key in ("clean_prefix", "patch_prefix", "clean_answer", "patch_answer"))
    return _pair(*values, template=row.get("case"))


def _auto_circuit(row: Row, _: str | None) -> Row:
    answers = [row["answers"], row["wrong_answers"]]
    for listed in answers:
        if not isinstance(listed, Sequence) or isinstance(listed, str) or not listed:
            raise Broken("answers and wrong_answers are not lists of texts", 'answers: [" a"], wrong_answers: [" b"]')
    right, wrong = ([text_of({"answer": text}, "answer") for text in listed] for listed in answers)
    return {
        "clean": text_of(row, "clean"),
        "corrupted": text_of(row, "corrupt"),
        "answer": right[0] if len(right) == 1 else right,
        "wrong_answer": wrong[0] if len(wrong) == 1 else wrong,
    }


def _other(row: Row, asked: str | None, usual: Sequence[str]) -> Row:
    """The row's counterfactual: the one asked for, else the first of the usual ones, else the first of all."""
    names = [key for key, value in row.items() if key.endswith(COUNTERFACTUAL) and isinstance(value, dict)]
    wanted = None if asked is None else asked.removesuffix(COUNTERFACTUAL) + COUNTERFACTUAL
    if not names or (wanted is not None and wanted not in names):
        raise Broken(
            f"no {wanted or 'counterfactual'}",
            f"counterfactual: {', '.join(names) or 'none here'}",
            "no counterfactual",
        )
    name = wanted or next((name for name in (f"{kind}{COUNTERFACTUAL}" for kind in usual) if name in names), names[0])
    other: Row = row[name]
    return other


def _choice(row: Row, key: object) -> str:
    """A choice by its number or its label: of a list of texts, or of lists ``label`` and ``text``."""
    choices = row.get("choices")
    labels = choices.get("label") if isinstance(choices, dict) else choices
    if not isinstance(labels, list):
        raise Broken("choices is not a list", 'choices: ["a", "b"], or {"label": [...], "text": [...]}')
    texts = [str(label) for label in labels]
    if isinstance(key, int) and not isinstance(key, bool) and 0 <= key < len(texts):
        return texts[key]
    if isinstance(key, str) and key in texts:
        return key
    raise Broken(f"answerKey {key!r} is none of the {len(texts)} choices", "the choice's number from 0, or its label")


def _ioi_table(row: Row, _: str | None) -> Row:
    """The answers are token ids of another tokenizer, so the names are those of the prompt."""
    clean = text_of(row, "clean")
    names = re.search(r"\b([A-Z]\w+) and ([A-Z]\w+)\b", clean)
    if names is None or (clean.count(names[1]) > 1) == (clean.count(names[2]) > 1):
        raise Broken("no two names of which one recurs", "columns:, with the answers as texts")
    io, subject = names.groups() if clean.count(names[2]) > 1 else reversed(names.groups())
    return _pair(clean, text_of(row, "corrupted"), io, subject, group=" ".join(sorted((io, subject))))


def _ioi(row: Row, asked: str | None) -> Row:
    other = _other(row, asked, ("s2_io_flip", "abc"))
    right, key = _choice(row, row["answerKey"]), row["answerKey"]
    wrong = next((str(name) for number, name in enumerate(row["choices"]) if number != key and name != right), "")
    if not wrong:
        raise Broken("choices has no second name", 'choices: ["Ann", "Bob"]')
    clean = text_of(row, "prompt")
    names_of_pair = " ".join(sorted((right, wrong)))
    positions = {"io": right} if clean.count(right) == 1 else None
    return _pair(
        clean,
        text_of(other, "prompt"),
        right,
        wrong,
        template=row.get("template"),
        group=names_of_pair,
        positions=positions,
    )


def _greater_than(row: Row, _: str | None) -> Row:
    clean = text_of(row, "clean").rstrip(" ")
    years = re.findall(r"\d{4}", clean)
    label = str(row["label"])
    if not label.isdecimal() or not 1 <= int(label) <= 97:
        raise Broken(
            f"the year {label or 'is missing'} leaves no later and earlier one", "a two-digit year from 1 to 97"
        )
    year = int(label)  # as a number: 04 may have become 4 on its way
    return {
        "clean": clean,
        "corrupted": text_of(row, "corrupted").rstrip(" "),
        "answer": f"{(year + 100) // 2:02d}",
        "wrong_answer": f"{year // 2:02d}",
        "group": years[0] if years else label,
    }


def _gendered_pronouns(row: Row, _: str | None) -> Row:
    for right, wrong in (("answer", "wrong_answer"), ("clean_answer", "corrupted_answer"), ("correct", "incorrect")):
        if right in row and wrong in row:
            return _pair(*(text_of(row, key) for key in ("clean", "corrupted", right, wrong)))
    ending = re.search(r"\b(he|she|him|her|his)\b", str(row.get("pronoun", row.get("label", ""))))
    if ending is None:
        raise Broken("the answers are token ids of another tokenizer", "columns:, with the pronouns as texts")
    other = {"he": "she", "she": "he", "him": "her", "her": "him", "his": "her"}[ending[1]]
    return _pair(text_of(row, "clean"), text_of(row, "corrupted"), ending[1], other)


def _arithmetic(row: Row, asked: str | None) -> Row:
    other = _other(row, asked, ("random",))
    operands = " ".join(str(row[key]) for key in ("operand1", "operator", "operand2") if row.get(key) is not None)
    return _pair(
        text_of(row, "prompt"),
        text_of(other, "prompt"),
        text_of(row, "label"),
        text_of(other, "label"),
        template=row.get("template"),
        group=operands,
    )


def _mcqa(row: Row, asked: str | None) -> Row:
    other = _other(row, asked, ("answerPosition", "symbol"))
    right, wrong = _choice(row, row["answerKey"]), _choice(other, other.get("answerKey"))
    return _pair(text_of(row, "prompt"), text_of(other, "prompt"), right, wrong, group=row.get("question"))


def _arc(row: Row, asked: str | None) -> Row:
    if "prompt" in row:
        return _mcqa(row, asked)
    right = _choice(row, row["answerKey"])
    labels, texts = row["choices"]["label"], list(map(str, row["choices"].get("text") or ()))
    if len(labels) != len(texts) or len(labels) < 2:
        raise Broken(f"{len(labels)} labels and {len(texts)} texts", "as many labels as texts, at least two")
    at = labels.index(right)
    swapped = (at + 1) % len(labels)
    other = list(texts)
    other[at], other[swapped] = texts[swapped], texts[at]
    question = text_of(row, "question")

    def prompt(listed: Sequence[str]) -> str:
        lines = [f"{label}. {text}" for label, text in zip(labels, listed, strict=True)]
        return "\n".join([f"Question: {question}", *lines, "Answer:"])

    return _pair(prompt(texts), prompt(other), right, str(labels[swapped]), group=question)


def _ravel(row: Row, asked: str | None) -> Row:
    """The corrupted prompt is the clean one about the counterfactual's entity."""
    other = _other(row, asked, ("attribute",))
    attribute, entity, clean = (text_of(row, key) for key in ("attribute", "entity", "prompt"))
    there = text_of(other, "entity")
    if clean.count(entity) != 1:
        raise Broken(f"{entity!r} is in the prompt {clean.count(entity)} times", "a prompt that names its entity once")
    return _pair(
        clean,
        clean.replace(entity, there),
        text_of(row, attribute),
        text_of(other, attribute),
        template=row.get("template"),
        group=entity,
        positions={"entity": entity},
    )


def _keys(*names: str) -> frozenset[str]:
    return frozenset(names)


_OURS = _keys("clean", "corrupted", "answer", "wrong_answer")
_AUTO_CIRCUIT = _keys("clean", "corrupt", "answers", "wrong_answers")
_INDICES = _keys("clean", "corrupted", "correct_idx", "incorrect_idx")
_PRONOUNS = (
    _keys("clean", "corrupted", "pronoun"),
    _keys("clean", "corrupted", "clean_answer", "corrupted_answer"),
    _keys("clean", "corrupted", "correct", "incorrect"),
    _OURS,
    _keys("clean", "corrupted", "label"),
    _INDICES,
)
# The conversion for each set of keys that rows of a format have; the first set that a row has decides.
FORMATS: Mapping[str, Mapping[frozenset[str], Convert]] = {
    # saprmarks/feature-circuits, data/*.json
    "feature-circuits": {_keys("clean_prefix", "patch_prefix", "clean_answer", "patch_answer"): _feature_circuits},
    # mib-bench/arithmetic_addition, arithmetic_subtraction
    "mib-arithmetic": {_keys("prompt", "label", "operand1", "operand2"): _arithmetic},
    # mib-bench/ravel
    "ravel": {_keys("prompt", "entity", "attribute"): _ravel},
    # mib-bench/arc_easy, arc_challenge; allenai/ai2_arc
    "arc": {_keys("question", "choices", "answerKey"): _arc},
    # mib-bench/ioi; hannamw/EAP-IG ioi.csv; UFO101/auto-circuit
    "ioi": {
        _keys("prompt", "choices", "answerKey", "metadata"): _ioi,
        _INDICES: _ioi_table,
        _AUTO_CIRCUIT: _auto_circuit,
    },
    # mib-bench/copycolors_mcqa
    "mcqa": {_keys("prompt", "choices", "answerKey"): _mcqa},
    # UFO101/auto-circuit docstring_prompts.json
    "docstring": {_AUTO_CIRCUIT: _auto_circuit},
    # hannamw/EAP-IG greater_than_data.csv; UFO101/auto-circuit
    "greater-than": {_keys("clean", "corrupted", "label"): _greater_than, _AUTO_CIRCUIT: _auto_circuit},
    # hannamw/EAP-IG gender.csv; UFO101/auto-circuit
    "gendered-pronouns": {**dict.fromkeys(_PRONOUNS, _gendered_pronouns), _AUTO_CIRCUIT: _auto_circuit},
}
