"""Samples of prompts keep the shares of templates and groups."""

from __future__ import annotations

from collections import Counter

from mechstudy.behaviours.sampling import sample
from mechstudy.behaviours.schema import PromptPair


def pairs(*templates: tuple[str, int], groups: int | None = None) -> list[PromptPair]:
    names = [name for name, count in templates for _ in range(count)]
    return [
        PromptPair(
            id=f"p{i}",
            template=name,
            group=f"g{i % groups if groups else i}",
            clean="a",
            corrupted="b",
            answer="c",
            wrong_answer="d",
            positions={},
            clean_tokens=(1,),
            corrupted_tokens=(2,),
            answer_tokens=(3,),
            wrong_tokens=(4,),
        )
        for i, name in enumerate(names)
    ]


def counts(chosen: list[PromptPair]) -> dict[str, int]:
    return dict(Counter(pair.template for pair in chosen))


def test_templates_of_a_sorted_file_keep_their_shares():
    assert counts(sample(pairs(("singular", 60), ("plural", 60)), 50, 0)) == {"singular": 25, "plural": 25}
    assert counts(sample(pairs(("a", 80), ("b", 40)), 30, 0)) == {"a": 20, "b": 10}


def test_every_beginning_of_a_sample_keeps_the_shares():
    chosen = sample(pairs(("a", 60), ("b", 30), ("c", 30)), 120, 3)
    for n in range(1, 121):
        for name, size in {"a": 60, "b": 30, "c": 30}.items():
            assert abs(counts(chosen[:n]).get(name, 0) - n * size / 120) <= 1


def test_groups_of_a_template_are_used_equally_often():
    chosen = sample(pairs(("a", 40), groups=8), 16, 0)
    assert set(Counter(pair.group for pair in chosen).values()) == {2}


def test_a_sample_depends_on_the_seed_and_not_on_the_order_of_lines():
    every = pairs(("a", 50))
    first = [pair.id for pair in sample(every, 10, 0)]
    assert [pair.id for pair in sample(every[::-1], 10, 0)] == first
    assert [pair.id for pair in sample(every, 10, 1)] != first
    assert set(first) != {f"p{i}" for i in range(10)}


def test_a_sample_of_more_than_there_are_is_all():
    every = pairs(("a", 5))
    assert sorted(pair.id for pair in sample(every, 9, 0)) == [pair.id for pair in every]
