import pytest

import mechstudy as ms
from tests.support.api_world import error_of
from tests.support.fake_tokenizer import FakeTokenizer


def test_a_file_gives_its_pairs(world):
    assert len(world.pairs) == 6
    assert world.pairs.frame["answer"].to_list() == ["x"] * 6
    assert len(world.pairs[:2].frame) == 2


def test_a_built_in_behaviour_gives_as_many_as_asked(world, monkeypatch):
    words = FakeTokenizer(bos=False)
    monkeypatch.setattr(world.model, "encode", lambda text, **_: words(text))
    pairs = ms.load_prompts("subject_verb_agreement", world.model, n=4)
    assert len(pairs) == 4
    more = ms.load_prompts("subject_verb_agreement", world.model, n=6)
    assert list(more[:4]) == list(pairs)


def test_an_unknown_behaviour_names_those_there_are(world):
    text = error_of(lambda: ms.load_prompts("subject_verb_agreemnt", world.model))
    assert "subject_verb_agreement" in text


def test_a_missing_file_is_a_missing_file(world):
    assert "nowhere.jsonl: cannot read" in error_of(lambda: ms.load_prompts("nowhere.jsonl", world.model))


def test_more_than_a_file_has_is_refused(world, tmp_path):
    file = tmp_path / "two.jsonl"
    file.write_text(
        '{"clean": "a", "corrupted": "b", "answer": "x", "wrong_answer": "y", "split": "train"}\n'
        '{"clean": "c", "corrupted": "d", "answer": "x", "wrong_answer": "y", "split": "test"}\n'
    )
    assert len(ms.load_prompts(file, world.model, split="test")) == 1
    assert "there are 2" in error_of(lambda: ms.load_prompts(file, world.model, n=3))
    assert "splits: train, test" in error_of(lambda: ms.load_prompts(file, world.model, split="all"))


def test_scores_have_a_row_for_each_prompt(world):
    frame = ms.score(world.model, world.pairs)
    assert frame["id"].to_list() == [pair.id for pair in world.pairs]
    assert frame["correct"].is_in([0, 1]).all()


@pytest.mark.parametrize("pairs", [[], ["text"]])
def test_what_holds_no_pairs_is_an_error_with_a_fix(world, pairs):
    assert "fix:" in error_of(lambda: ms.score(world.model, pairs))


def test_a_file_is_read_by_the_same_fields_as_in_a_study(world, tmp_path):
    file = tmp_path / "three.csv"
    file.write_text("clean,corrupted,answer,wrong_answer,split\nab,abcd,x,y,train\nce,de,x,y,test\nef,gf,x,y,test\n")
    assert "align" in error_of(lambda: ms.load_prompts(file, world.model))
    assert len(ms.load_prompts(file, world.model, align="ends")) == 3
    file.write_text("clean,answer,wrong_answer,split\nab,x,y,train\nac,x,z,train\nce,x,y,test\ncd,x,z,test\n")
    drawn = ms.load_prompts(file, world.model, corrupted="other-line")
    assert all(pair.corrupted for pair in drawn)
