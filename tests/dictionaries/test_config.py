"""Every field of the two configs is described, in help() and in the docs, in the same words."""

from pathlib import Path

import pytest

from mechstudy.dictionaries.config import DictionaryConfig, TrainConfig, field_rows

DOCS = Path(__file__).parents[2] / "docs" / "reference" / "dictionaries.md"


@pytest.mark.parametrize("cls", [DictionaryConfig, TrainConfig])
def test_every_field_is_described_in_help_and_in_the_docs(cls):
    rows = field_rows(cls)
    assert [name for name, _, _ in rows] == list(cls.model_fields)
    _, _, table = DOCS.read_text().partition(f"| `{cls.__name__}`, ")
    lines = table.partition("\n\n")[0].splitlines()[2:]
    assert lines == [f"| `{name}` | {default} | {text} |" for name, default, text in rows]
    text_of_help = " ".join((cls.__doc__ or "").split())
    for name, default, text in rows:
        assert text and f"{name}: {text}{f' [{default}]' if default else ''}" in text_of_help
