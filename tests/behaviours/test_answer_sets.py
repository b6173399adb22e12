"""Several right and several wrong answers on one line of a prompts file."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from mechstudy.behaviours.contrast import Contrast
from mechstudy.behaviours.metrics import DIFFERENCE, metric_name
from mechstudy.behaviours.schema import PromptPair, from_jsonl, to_jsonl
from mechstudy.behaviours.user import PromptSource, outline, read_prompts
from mechstudy.core.errors import MechstudyError
from tests.support.fake_tokenizer import FakeTokenizer

ROW = {"clean": "The cat near it", "corrupted": "The cats near it", "answer": [" is", " was"], "wrong_answer": " are"}
OTHER = {"clean": "One dog", "corrupted": "Two dog", "answer": " is", "wrong_answer": " are", "split": "train"}


def read(folder: Path, row: dict, **reading: object) -> PromptPair:
    path = folder / "mine.jsonl"
    path.write_text("\n".join(map(json.dumps, [OTHER, row | {"split": "test"}])))
    source = PromptSource.of(path, {"strict": True} | reading)
    [pair] = read_prompts(source, FakeTokenizer(bos=False)).pairs["test"]
    return pair


def broken(folder: Path, **change: object) -> MechstudyError:
    with pytest.raises(MechstudyError) as error:
        read(folder, ROW | change)
    return error.value


def test_a_list_of_answers_is_a_set_whose_first_is_the_answer(tmp_path):
    pair = read(tmp_path, ROW)
    assert (pair.answer, pair.wrong_answer) == (" is", " are")
    assert (pair.all_answers, pair.all_wrong_answers) == ((" is", " was"), (" are",))
    assert pair.all_answer_tokens[0] == pair.answer_tokens and len(pair.all_answer_tokens) == 2
    assert pair.answer_sets is not None and pair.answer_sets.combine == "logsumexp"
    assert metric_name([pair]) == "difference of log-sum-exp logits"


def test_the_study_chooses_the_mean(tmp_path):
    pair = read(tmp_path, ROW, answer_sets="mean")
    assert Contrast.of_pair(pair).combine == "mean" and metric_name([pair]) == "difference of mean logits"


def test_sets_survive_the_prompts_file(tmp_path):
    pair = read(tmp_path, ROW)
    (tmp_path / "train.jsonl").write_text(to_jsonl([pair]))
    assert from_jsonl(tmp_path / "train.jsonl") == [pair]


@pytest.mark.parametrize("answer", [" is", [" is"], [" is", " is"]])
def test_one_answer_is_no_set(tmp_path, answer):
    pair = read(tmp_path, ROW | {"answer": answer}, answer_sets="mean")
    assert pair.answer_sets is None and "answer_sets" not in pair.canonical()
    assert metric_name([pair]) == DIFFERENCE


def test_whole_numbers_in_a_list_are_their_digits(tmp_path):
    ends = {"clean": "The cat:", "corrupted": "The cats:"}
    assert read(tmp_path, ROW | ends | {"answer": [12, " was"]}).all_answers == ("12", " was")


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"answer": [" is", " are"]}, "answers ' are' and ' are' begin with the same token"),
        ({"wrong_answer": [" be", " was"]}, "answers ' was' and ' was' begin with the same token"),
        ({"answer": []}, "answer is an empty list"),
        ({"answer": [" is", None]}, "answer is 'None', not a text"),
        ({"answer": {"a": 1}}, 'answer is {"a": 1}, not a text'),
        ({"wrong_answer": [" are", ""]}, "wrong_answer is '', not a text"),
        ({"clean": "The cat ", "corrupted": "The cats"}, "clean ends with a space and answer begins with one"),
    ],
)
def test_a_set_that_cannot_be_used_says_why(tmp_path, change, what):
    assert what in broken(tmp_path, **change).what


def test_a_line_whose_sets_share_a_first_token_is_left_out_and_counted(tmp_path):
    path = tmp_path / "mine.jsonl"
    bad = ROW | {"clean": "The dog near it", "corrupted": "The dogs near it", "answer": [" is", " are"]}
    path.write_text(
        "\n".join(json.dumps(row | {"split": s}) for row, s in ((OTHER, "train"), (ROW, "test"), (bad, "test")))
    )
    read_ = read_prompts(PromptSource.of(path, {}), FakeTokenizer(bos=False))
    assert {n: error.kind for n, error in read_.left_out.items()} == {3: "answers begin with the same token"}
    assert [pair.id for pair in read_.pairs["test"]] == ["line-0002"]


def test_a_table_holds_a_set_as_a_json_list(tmp_path):
    path = tmp_path / "mine.csv"
    with path.open("w", newline="") as file:
        table = csv.DictWriter(file, [*ROW, "split"])
        table.writeheader()
        for row, given, split in ((OTHER, " is", "train"), (ROW, json.dumps(ROW["answer"]), "test")):
            table.writerow(row | {"answer": given, "split": split})
    assert outline(PromptSource.of(path, {"strict": True})).n == {"train": 1, "test": 1}
    pairs = read_prompts(PromptSource(path), FakeTokenizer(bos=False)).pairs
    assert pairs["test"][0].all_answers == (" is", " was")
    assert pairs["train"][0].all_answers == (" is",)


def test_columns_of_lists_are_sets(tmp_path):
    row = {
        "q": "The cat near it",
        "corrupted": "The cats near it",
        "right": [" is", " was"],
        "wrong": [" are", " were"],
    }
    path = tmp_path / "mine.json"
    path.write_text(
        json.dumps([row | {"split": "test"}, row | {"q": "One dog", "corrupted": "Two dog", "split": "train"}])
    )
    columns = {"clean": "q", "answer": "right", "wrong_answer": "wrong"}
    [pair] = read_prompts(PromptSource.of(path, {"columns": columns}), FakeTokenizer(bos=False)).pairs["test"]
    assert (pair.all_answers, pair.all_wrong_answers) == ((" is", " was"), (" are", " were"))


def test_a_published_file_with_lists_is_read_with_all_of_them(tmp_path):
    row = {"clean": "def f(a, b)", "corrupt": "def g(a, b)", "answers": [" b"], "wrong_answers": [" d", " e"]}
    rows = [row | {"clean": f"def f{i}(a, b)", "corrupt": f"def g{i}(a, b)"} for i in range(12)]
    path = tmp_path / "docstring.json"
    path.write_text(json.dumps({"prompts": rows}))
    every = read_prompts(PromptSource.of(path, {"format": "docstring"}), FakeTokenizer(bos=False)).pairs
    assert {pair.all_wrong_answers for side in every.values() for pair in side} == {(" d", " e")}


def test_other_line_prompts_take_the_donors_set_as_wrong_answers(tmp_path):
    lines = [
        {"clean": f"{word} {i} near it", "answer": answers, "split": split, "template": "t"}
        for split in ("train", "test")
        for i, (word, answers) in enumerate((("cats", [" are", " were"]), ("cat", [" is", " was"])))
    ]
    lines = [line | {"clean": f"{line['split']} {line['clean']}"} for line in lines]
    path = tmp_path / "mine.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    pairs = read_prompts(PromptSource.of(path, {"corrupted": "other-line"}), FakeTokenizer(bos=False)).pairs["test"]
    assert {(p.all_answers, p.all_wrong_answers) for p in pairs} == {
        ((" are", " were"), (" is", " was")),
        ((" is", " was"), (" are", " were")),
    }


def test_whole_answers_may_begin_alike_but_not_with_each_other(tmp_path):
    row = ROW | {"answer": " abcdefghij", "wrong_answer": " abcdxyzuvw"}  # pieces of five letters
    with pytest.raises(MechstudyError, match="begin with the same token") as error:
        read(tmp_path, row)
    assert "answer_tokens: all" in (error.value.fix or "") or "end both prompts" in (error.value.fix or "")
    pair = read(tmp_path, row, answer_tokens="all")
    assert pair.whole_answers and pair.answer_tokens[0] == pair.wrong_tokens[0]
    assert metric_name([pair]) == "difference of whole answers' log-probabilities"
    assert "whole_answers" not in read(tmp_path, ROW).canonical()
    with pytest.raises(MechstudyError, match="the tokens of one begin with those of the other"):
        read(tmp_path, row | {"wrong_answer": " abcd"}, answer_tokens="all")
    with pytest.raises(MechstudyError, match="2 right and 1 wrong answers with answer_tokens: all"):
        read(tmp_path, ROW, answer_tokens="all")


def test_sets_that_do_not_begin_with_the_pairs_own_answers_are_refused(tmp_path):
    pair = read(tmp_path, ROW)
    assert pair.answer_sets is not None
    values = pair.canonical()
    values["answer_sets"]["right"] = [" was", " is"]
    with pytest.raises(MechstudyError, match="does not begin with the pair's own answers"):
        PromptPair(**values)
