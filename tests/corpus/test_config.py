"""Corpus sources and sizes, as written in a study."""

from __future__ import annotations

import pytest

from mechstudy.core.errors import MechstudyError
from mechstudy.corpus.config import CorpusConfig, Source


@pytest.mark.parametrize(
    ("text", "source"),
    [
        ("bundled", Source("bundled")),
        ("self", Source("sampled")),
        ("sampled", Source("sampled")),
        ("text:a:b.txt", Source("text", "a:b.txt")),
        ("hf:org/set", Source("hf", "org/set")),
        ("hf:org/set:en", Source("hf", "org/set", config="en")),
        ("hf:org/set:test", Source("hf", "org/set", split="test")),
        ("hf:org/set:en:validation@v1.0", Source("hf", "org/set", "en", "validation", "v1.0")),
        ("hf:org/set::odd@abc", Source("hf", "org/set", None, "odd", "abc")),
    ],
)
def test_sources_are_read_as_documented(text, source):
    assert Source.parse(text) == source


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("bundeld", "did you mean 'bundled'"),
        ("csv:a.csv", "not a corpus source"),
        ("jsonl:", "write jsonl:PATH"),
        ("bundled:x", "takes nothing after it"),
        ("hf::train", "not a dataset"),
        ("hf:org/set:train[:10%]", "slices its split"),
    ],
)
def test_other_sources_are_refused_with_a_hint(text, message):
    with pytest.raises(MechstudyError) as caught:
        Source.parse(text)
    assert message in str(caught.value)
    with pytest.raises(MechstudyError):
        CorpusConfig(source=text, tokens=10)


def test_tokens_are_rounded_up_to_whole_rows():
    config = CorpusConfig(tokens=129, held_out_tokens=128, context=128)
    assert (config.train_rows, config.held_out_rows, config.n_rows) == (2, 1, 3)
