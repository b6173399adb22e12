from __future__ import annotations

from itertools import accumulate

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mechstudy.behaviours.tokenise import Tokens, Unsuitable, pair_tokens, require_open_end, same_positions, token_at
from mechstudy.core.errors import MechstudyError
from tests.support.fake_tokenizer import FakeTokenizer

prompts = st.text(alphabet="abcdefghij .,\n", max_size=60).filter(str.strip)


@settings(deadline=None)
@given(text=prompts, data=st.data(), bos=st.booleans())
def test_the_token_found_is_the_one_that_holds_the_character(text: str, data: st.DataObject, bos: bool):
    encode = FakeTokenizer(bos=bos)
    end = data.draw(st.sampled_from([index + 1 for index, letter in enumerate(text) if not letter.isspace()]))
    starts = accumulate(map(len, encode.pieces(text)), initial=0)
    holds = max(index for index, start in enumerate(starts) if start < end)
    assert token_at(Tokens(encode), text, end) == holds + bos


def test_a_text_is_encoded_once():
    calls = []
    tokens = Tokens(lambda text: calls.append(text) or [1])
    assert tokens("a") == tokens("a") == (1,)
    assert calls == ["a"]


@pytest.mark.parametrize(
    ("clean", "corrupted", "answer", "wrong", "kind"),
    [
        ("The cat", "The big cat", " is", " are", "unequal token length"),
        ("The cat", "The cat", " is", " are", "are the same"),
        ("The cat", "The dog", " is", " is", "begin with the same token"),
        ("The cat", "The dog", " abcdefghijk", " abcdvwxyz", "begin with the same token"),
        ("The cat", "The dog", "s are", " is", "merges"),
        ("The cat ", "The dog ", "is", "are", "merges"),
        ("", "", " is", " are", "without a token"),
        ("The cat", "The dog", "", " are", "without a token"),
    ],
)
def test_what_cannot_be_contrasted_is_unsuitable(clean: str, corrupted: str, answer: str, wrong: str, kind: str):
    if kind == "begin with the same token" and answer != wrong:
        answer, wrong = " abcdeghijk", " abcdeghiww"
    with pytest.raises(Unsuitable) as error:
        pair_tokens(Tokens(FakeTokenizer(bos=False)), clean, corrupted, answer, wrong)
    assert kind in error.value.kind


def test_answers_are_tokenised_as_they_follow_the_prompt():
    encode = FakeTokenizer(bos=True)
    pair = pair_tokens(Tokens(encode), "The cat", "The dog", " is", " are")
    assert encode.text(pair.answer[0]) == " is"
    assert len(pair.answer) == 1, "no BOS of its own"


def test_answers_tokenised_differently_after_the_prompts_are_unsuitable():
    table = {"a": [1], "b": [2], "ax": [1, 7], "bx": [2, 8], "ay": [1, 9], "by": [2, 9]}
    with pytest.raises(Unsuitable, match="different tokens"):
        pair_tokens(Tokens(table.__getitem__), "a", "b", "x", "y")


def test_positions_that_differ_between_the_prompts_are_unsuitable():
    tokens = Tokens(FakeTokenizer(bos=False))
    ends = {"noun": 7}
    assert same_positions(tokens, "The cat is", ends, "The dog is", ends) == {"noun": 1, "last": 2}
    with pytest.raises(Unsuitable, match="token 1 in clean, 2 in corrupted"):
        same_positions(tokens, "The cat is", ends, "The big dog", {"noun": 11})


def test_two_names_for_one_token_are_unsuitable():
    tokens = Tokens(FakeTokenizer(bos=False))
    with pytest.raises(Unsuitable, match="same token"):
        same_positions(tokens, "The cat", {"noun": 7}, "The dog", {"noun": 7})


def test_an_encoding_that_closes_the_prompt_is_refused():
    encode = FakeTokenizer(bos=True)
    require_open_end(Tokens(encode))
    with pytest.raises(MechstudyError, match="adds tokens after the prompt"):
        require_open_end(Tokens(lambda text: [*encode(text), 99]))
