"""The paper's text and bibliography, without a run."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

HERE = Path(__file__).parents[2] / "paper"
TEXT = (HERE / "paper.typ").read_text(encoding="utf-8")
ALLOWED = ("R²", "L0")  # names of measures


def prose(text: str) -> str:
    """What a reader reads, without comments, strings, formulas, labels and citations."""
    for pattern in (r"^//.*$", r'"[^"]*"', r"\$[^$]*\$", r"<[a-z][\w-]*>", r"@[a-z][\w-]*", r"\d+pt\b|\d+fr\b"):
        text = re.sub(pattern, " ", text, flags=re.MULTILINE)
    for name in ALLOWED:
        text = text.replace(name, " ")
    return text


def test_the_text_holds_no_number_of_its_own():
    found = [line.strip() for line in prose(TEXT).splitlines() if re.search(r"\d", line)]
    assert not found


@pytest.mark.parametrize("typed", ["carries 0.86 of it", "95% of the prompts", "in table 3"])
def test_a_typed_number_is_seen(typed):
    assert re.search(r"\d", prose(TEXT + typed))


def test_every_work_of_the_bibliography_is_cited_and_only_those():
    works = set(re.findall(r"^@\w+\{([\w-]+),", (HERE / "references.bib").read_text(encoding="utf-8"), re.MULTILINE))
    labels = set(re.findall(r"<([a-z][\w-]*)>", TEXT))
    cited = set(re.findall(r"(?<![\w.])@([a-z][\w-]*)", re.sub(r'"[^"]*"', "", TEXT))) - labels
    assert cited == works
