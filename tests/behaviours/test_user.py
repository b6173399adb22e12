from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mechstudy.behaviours.remarks import continues_a_word, too_long
from mechstudy.behaviours.schema import PromptPair
from mechstudy.behaviours.user import (
    PromptSource,
    UserPrompts,
    load_jsonl,
    outline,
    outline_jsonl,
    read_prompts,
)
from mechstudy.core.errors import MechstudyError
from mechstudy.models.context import ContextLength
from tests.support.fake_tokenizer import FakeTokenizer

GOOD = {
    "clean": "The cat near the trees",
    "corrupted": "The cats near the trees",
    "answer": " is",
    "wrong_answer": " are",
}


def lines(n: int, **more: object) -> list[dict]:
    return [
        {**GOOD, "clean": f"The cat near {i} trees", "corrupted": f"The cats near {i} trees", **more} for i in range(n)
    ]


def write(folder: Path, *rows: object, name: str = "mine.jsonl") -> Path:
    path = folder / name
    text = (row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows)
    path.write_bytes(b"\n".join(text) + b"\n")
    return path


def load(path: Path, bos: bool = False) -> dict[str, list[PromptPair]]:
    return load_jsonl(path, FakeTokenizer(bos=bos))


def load_one(folder: Path, row: object, bos: bool = False) -> PromptPair:
    other = {**GOOD, "clean": "One dog", "corrupted": "Two dog", "split": "train"}
    return load(write(folder, {**row, "split": "test"}, other), bos)["test"][0]  # type: ignore[dict-item]  # a mapping


def broken(folder: Path, *rows: object) -> MechstudyError:
    with pytest.raises(MechstudyError) as error:
        load(write(folder, *lines(1), *rows))
    return error.value


def test_required_keys_suffice_and_the_rest_is_filled_in(tmp_path):
    pair = load_one(tmp_path, GOOD)
    assert (pair.id, pair.template, pair.group) == ("line-0001", "user", GOOD["clean"])
    assert pair.positions == {"last": 4}
    assert len(pair.clean_tokens) == 5


def test_optional_keys_are_kept(tmp_path):
    pair = load_one(tmp_path, {**GOOD, "id": "my-1", "template": "near", "group": "cat"})
    assert (pair.id, pair.template, pair.group) == ("my-1", "near", "cat")


@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize(
    ("place", "index"),
    [("cat", 1), (" cat", 1), ("The cat", 1), ("near ", 2), ("nea", 2), ("trees", 4), ("near the", 3)],
)
def test_a_substring_is_the_last_token_it_touches(tmp_path, place: str, index: int, bos: bool):
    pair = load_one(tmp_path, {**GOOD, "positions": {"here": place}}, bos)
    assert pair.positions == {"here": index + bos, "last": 4 + bos}


@pytest.mark.parametrize(("place", "index"), [(0, 0), (3, 3), (-1, 4), (-5, 0)])
def test_a_position_may_be_an_index_from_either_end(tmp_path, place: int, index: int):
    assert load_one(tmp_path, {**GOOD, "positions": {"here": place}}).positions["here"] == index


def test_blank_lines_crlf_and_a_byte_order_mark_are_accepted(tmp_path):
    rows = [json.dumps(row).encode() for row in lines(20)]
    plain = load(write(tmp_path, *rows))
    path = tmp_path / "windows.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + b"\r\n".join(rows) + b"\r\n\r\n")
    assert load(path) == plain


def test_a_line_s_split_depends_on_its_group_alone(tmp_path):
    rows = lines(40)
    few = load(write(tmp_path, *rows[:20]))
    more = load(write(tmp_path, *rows[::-1]))
    for split in ("train", "test"):
        assert {pair.clean for pair in few[split]} <= {pair.clean for pair in more[split]}
        assert 10 <= len(more[split]) <= 30


def test_groups_never_straddle(tmp_path):
    rows = [{**row, "group": f"g{i % 7}"} for i, row in enumerate(lines(60))]
    split = load(write(tmp_path, *rows))
    assert not {pair.group for pair in split["train"]} & {pair.group for pair in split["test"]}


def test_a_stated_split_carries_its_whole_group(tmp_path):
    rows = [{**row, "group": "g"} for row in lines(9)]
    rows[4]["split"] = "test"
    split = load(write(tmp_path, *rows, {**GOOD, "split": "train"}))
    assert len(split["test"]) == 9


@pytest.mark.parametrize(
    ("row", "what", "fix"),
    [
        (b"{", "not JSON: Expecting property name", "one JSON object a line"),
        (b"\xff\xfe{}", "not UTF-8 at byte 1", "UTF-8"),
        (b"[" * 100_000, "", ""),
        (b'{"positions": {"a": ' + b"9" * 5000 + b"}}", "not readable", "token indices"),
        ([1], "a JSON list, not an object", "clean"),
        (b'{"clean": "a", "clean": "b"}', "key 'clean' occurs twice", "keep one"),
        ({**GOOD, "wrong_anser": "x"}, "unknown key 'wrong_anser'", "'wrong_answer'?"),
        ({**GOOD, "zzz": "x"}, "unknown key 'zzz'", "keys: clean, corrupted"),
        ({"clean": "a", "answer": " b"}, "missing corrupted, wrong_answer", "required: clean"),
        ({**GOOD, "answer": ""}, 'answer is "", not a text', "answer: a non-empty string"),
        ({**GOOD, "id": 5}, "id is 5, not a text", "id: a non-empty string"),
        ({**GOOD, "id": "../up"}, "id '../up' cannot name a file", "letters"),
        ({**GOOD, "split": "val"}, "unknown split 'val'", "one of train, test"),
        (b'{"clean": "\\ud800", "corrupted": "b", "answer": " c", "wrong_answer": " d"}', "surrogate", "character"),
        ({**GOOD, "corrupted": "The cats trees"}, "clean has 5 tokens, corrupted 3", "same number of tokens"),
        ({**GOOD, "wrong_answer": " is"}, "begin with the same token", "different first tokens"),
        ({**GOOD, "answer": "is"}, "merges with the end of the prompt", "begin the answer with one"),
        ({**GOOD, "corrupted": GOOD["clean"]}, "the same tokens", "change one"),
        ({**GOOD, "clean": "The cat near the trees "}, "clean ends with a space and answer begins with one", "without"),
        ({**GOOD, "positions": ["cat"]}, "positions is not an object", '"name": "substring" or token index'),
        ({**GOOD, "positions": {"a": 2.5}}, "position a is 2.5", "substring of the clean prompt, or a token index"),
        ({**GOOD, "positions": {"a": True}}, "position a is true", "substring"),
        ({**GOOD, "positions": {"a": " "}}, 'position a is " "', "substring"),
        ({**GOOD, "positions": {"a": "dog"}}, "position a: 'dog' is not in the clean prompt", "copy it"),
        ({**GOOD, "positions": {"a": "he"}}, "position a: 'he' is in the clean prompt more than once", "longer"),
        ({**GOOD, "positions": {"a": 5}}, "position a: no token 5", "from 0 to 4"),
        ({**GOOD, "positions": {"a": -6}}, "position a: no token -6", "from 0 to 4"),
        ({**GOOD, "positions": {"last": 1}}, "position last is token 1, but the prompt ends with token 4", "leave"),
        ({**GOOD, "positions": {"": 1}}, "a position's name", "non-empty"),
    ],
)
def test_a_broken_line_is_named_with_its_defect_and_fix(tmp_path, row: object, what: str, fix: str):
    error = broken(tmp_path, row)
    assert error.where == f"{tmp_path / 'mine.jsonl'}:2"
    assert what in error.what
    assert fix in (error.fix or "")


def test_answers_that_continue_the_last_word_are_found():
    suspect = [("the city of", "Paris"), ("un", "able"), ("un", " able", "able")]
    fine = [("the city of", " Paris"), ("2 + 2 = ", "4"), ("A:\n", "Yes"), ("首都是", "北京")]
    assert [texts for texts in [*suspect, *fine] if continues_a_word(*texts)] == suspect


@given(st.lists(st.sampled_from(["train", "test", None]), min_size=4, max_size=12))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
def test_the_outline_counts_what_is_loaded(tmp_path, splits: list[str | None]):
    rows = [{**row, **({"split": s} if s else {})} for row, s in zip(lines(len(splits)), splits, strict=True)]
    path = write(
        tmp_path, *rows, *({**row, "split": s} for row, s in zip(lines(40)[38:], ("train", "test"), strict=True))
    )
    assert dict(outline_jsonl(path).n) == {split: len(pairs) for split, pairs in load(path).items()}


def test_occurrences_that_overlap_are_ambiguous_too(tmp_path):
    row = {**GOOD, "clean": "The hahaha near the trees", "positions": {"a": "haha"}}
    assert "'haha' is in the clean prompt more than once" in broken(tmp_path, row).what


def test_ids_and_pairs_occur_once(tmp_path):
    first = {**lines(1)[0], "id": "a"}
    assert (
        "id 'a' is line 2's"
        in broken(tmp_path, first | GOOD, {**GOOD, "id": "a", "clean": "A cat near the trees"}).what
    )
    assert "the same pair as line 1" in broken(tmp_path, *lines(1)).what


def test_a_group_stated_in_both_splits_is_refused(tmp_path):
    rows = [{**row, "group": "g", "split": split} for row, split in zip(lines(2), ("train", "test"), strict=True)]
    with pytest.raises(MechstudyError, match="group 'g' is in test here and in train on line 1"):
        load(write(tmp_path, *rows))


def test_a_clean_prompt_in_both_splits_is_refused(tmp_path):
    rows = [{**GOOD, "group": "a", "split": "train"}, {**GOOD, "group": "b", "split": "test", "answer": " was"}]
    with pytest.raises(MechstudyError, match=r"mine\.jsonl:2: the clean prompt of line 1, in the other split"):
        load(write(tmp_path, *rows))


def test_ten_broken_lines_are_listed_and_the_rest_counted(tmp_path):
    error = broken(tmp_path, *([{**GOOD, "corrupted": "The cats"}] * 12))
    assert error.what == "12 of 13 lines are broken; the first 10 are"
    assert list(error.facts) == [f"mine.jsonl:{number}" for number in range(2, 12)]
    assert re.search(r"\n  mine\.jsonl:2: +clean has 5 tokens, corrupted 2\n +fix: words", str(error))


def test_two_broken_lines_are_listed_without_a_count_of_the_rest(tmp_path):
    assert broken(tmp_path, b"{", b"{").what == "2 of 3 lines are broken"


@pytest.mark.parametrize("data", [b"", b"\n \n", b"\xef\xbb\xbf"])
def test_an_empty_file_is_refused(tmp_path, data: bytes):
    path = tmp_path / "empty.jsonl"
    path.write_bytes(data)
    with pytest.raises(MechstudyError, match=r"empty\.jsonl: no prompts in the file"):
        load(path)


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    for path in (tmp_path / "none.jsonl", tmp_path):
        with pytest.raises(MechstudyError, match="cannot read the prompts"):
            load(path)


def test_an_encoding_that_adds_tokens_after_the_prompt_is_refused(tmp_path):
    encode = FakeTokenizer(bos=False)
    with pytest.raises(MechstudyError, match="adds tokens after the prompt"):
        load_jsonl(write(tmp_path, *lines(9)), lambda text: encode(f"user: {text} assistant:"))


def test_a_file_with_one_split_only_says_how_to_get_the_other(tmp_path):
    with pytest.raises(MechstudyError, match="no test prompts: all 5 are in the other split") as error:
        load(write(tmp_path, *lines(5, split="train")))
    assert '"split": "test"' in (error.value.fix or "")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.floats() | st.text(max_size=5),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=5), children, max_size=3),
    max_leaves=5,
)
rows = st.fixed_dictionaries(
    {key: st.just(text) for key, text in GOOD.items()},
    optional={"positions": json_values, "id": json_values, "split": json_values},
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=50)
@given(row=st.binary(max_size=40) | rows.map(lambda row: json.dumps(row).encode()))
def test_any_line_is_either_read_or_refused_with_a_message(tmp_path, row: bytes):
    try:
        load(write(tmp_path, *lines(20), row))
    except MechstudyError as error:
        assert "mine.jsonl" in str(error)


def lenient(path: Path, bos: bool = False, context: ContextLength | None = None) -> UserPrompts:
    return read_prompts(PromptSource(path, strict=False), FakeTokenizer(bos=bos), context)


def test_lines_that_cannot_be_used_are_left_out_and_counted(tmp_path):
    path = write(tmp_path, *lines(9), {**GOOD, "corrupted": "The cats"}, b"{", {**GOOD, "zzz": 1}, *lines(1))
    read = lenient(path)
    assert sum(map(len, read.pairs.values())) == 9 and read.n_lines == 13
    assert {number: error.kind for number, error in read.left_out.items()} == {
        10: "clean and corrupted of unequal token length",
        11: "not a prompt pair",
        12: "unknown keys",
        13: "repeated pair",
    }
    found = outline(PromptSource(path, strict=False))
    assert found.left_out == {"not a prompt pair": 1, "unknown keys": 1} and found.n_lines == 13


def test_a_file_without_a_usable_line_in_a_split_is_refused_with_its_lines(tmp_path):
    rows = [*lines(3, split="train"), {**GOOD, "corrupted": "The cats", "split": "test"}]
    with pytest.raises(MechstudyError, match=r"mine\.jsonl:4: clean has 5 tokens, corrupted 2"):
        lenient(write(tmp_path, *rows))
    rows = [*lines(3, split="train"), *({**GOOD, "clean": f"A{i}", "split": "test"} for i in range(2))]
    with pytest.raises(MechstudyError, match="2 of 5 lines are broken, and no test prompts are left"):
        lenient(write(tmp_path, *rows))


def test_one_defect_of_all_lines_is_reported_once(tmp_path):
    path = write(tmp_path, *({"clean_prefix": "a", "patch_prefix": f"b{i}"} for i in range(30)))
    with pytest.raises(MechstudyError) as error:
        outline(PromptSource(path, strict=False))
    assert error.value.what == "unknown keys 'clean_prefix', 'patch_prefix' (on all 30 lines)"
    assert error.value.where == f"{path}:1"


def test_a_prompt_with_its_own_bos_token_ends_a_study_that_is_not_strict(tmp_path):
    words = FakeTokenizer(bos=False)

    def encode(text: str) -> list[int]:
        return [token for part in ("<bos>" + text).split("<bos>")[1:] for token in (0, *words(part))]

    rows = [{**row, "clean": "<bos>" + row["clean"], "corrupted": "<bos>" + row["corrupted"]} for row in lines(6)]
    path = write(tmp_path, *lines(9)[6:], *rows)
    with pytest.raises(MechstudyError, match="6 of 9 lines are broken") as error:
        read_prompts(PromptSource(path, strict=False), encode)
    assert "clean begins with '<bos>', which the encoding adds itself" in str(error.value)


def test_prompts_beyond_learned_positions_are_refused_by_line(tmp_path):
    rows = [*lines(8), {**GOOD, "clean": GOOD["clean"] + " a b c", "corrupted": GOOD["corrupted"] + " a b c"}]
    path = write(tmp_path, *rows)
    with pytest.raises(MechstudyError, match=r"mine\.jsonl:9: 8 tokens, the model has 7 positions \(n_positions\)"):
        lenient(path, context=ContextLength(7, "n_positions", True))
    assert lenient(path, context=ContextLength(8, "n_positions", True)).left_out == {}
    rotary = ContextLength(7, "max_position_embeddings", False)
    pairs = [pair for pairs in lenient(path, context=rotary).pairs.values() for pair in pairs]
    assert too_long(pairs, rotary) == (
        "1 of 9 prompts are longer than the model's context: line-0009 has 8 tokens, the model has 7 positions"
        " (max_position_embeddings)"
    )


def test_answers_that_share_a_beginning_may_leave_it_to_the_prompt(tmp_path):
    row = {**GOOD, "answer": " abcdefghij", "wrong_answer": " abcdezzzzz"}
    assert "end both prompts with the part that the answers share, ' abcde'" in (broken(tmp_path, row).fix or "")


@pytest.mark.parametrize(
    ("row", "what", "kind"),
    [
        ({"positions": {"subject": "zzz"}}, "is not in the clean prompt", "a position that is not in the prompt"),
        ({"wrong_answer": GOOD["answer"]}, "they are the same", "answers begin with the same token"),
    ],
)
def test_defects_that_need_no_tokenizer_are_found_without_one(tmp_path, row, what, kind):
    path = write(tmp_path, *lines(9), GOOD | row)
    found = outline(PromptSource(path, strict=False))
    assert found.left_out == {kind: 1} and what in found.left_out_lines[10]
    with pytest.raises(MechstudyError, match=what):
        outline(PromptSource(path))
