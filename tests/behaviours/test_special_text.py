"""Prompts that bring a BOS token or chat markup which the encoding adds."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from mechstudy.behaviours.special_text import Opening
from mechstudy.behaviours.tokenise import Tokens, Unsuitable
from mechstudy.behaviours.user import FATAL

SPECIAL = re.compile(r"<\|\w+\|>|<bos>|\[/?INST\]| ?\w+|.", re.DOTALL)
CHATML = "<|im_start|>user\nContinue the text.<|im_end|>\n<|im_start|>assistant\n"


def encoder(before: str) -> Callable[[str], list[int]]:
    """Words and special tokens, after a fixed text."""
    ids: dict[str, int] = {}
    return lambda text: [ids.setdefault(piece, len(ids)) for piece in SPECIAL.findall(before + text)]


def opening(before: str) -> Opening:
    return Opening(Tokens(encoder(before)))


def test_a_prompt_that_begins_with_the_bos_token_is_refused():
    with pytest.raises(Unsuitable, match=r"clean begins with '<\|bos\|>', which the encoding adds itself"):
        opening("<|bos|>").check("clean", "<|bos|>The cat")
    with pytest.raises(Unsuitable, match="begins with '<bos>'"):
        opening("<bos>").check("clean", "<bos>The cat")
    with pytest.raises(Unsuitable, match="begins with '<bos>'"):
        opening("<bos>").check("corrupted", " \n<bos>The cat")


def test_a_bos_token_is_accepted_where_the_encoding_adds_none_or_inside_a_prompt():
    opening("").check("clean", "<|bos|>The cat")
    opening("<|bos|>").check("clean", "The cat")
    opening("<|bos|>").check("clean", "A document.<|bos|>Another")


@pytest.mark.parametrize("text", ["<|im_start|>user\nHello", "Hello<|im_end|>", "Q<|im_start|>"])
def test_chat_markup_written_by_hand_is_refused_inside_a_chat(text: str):
    with pytest.raises(Unsuitable, match=r"which the (chat template writes too|encoding adds itself)"):
        opening(CHATML).check("clean", text)


def test_chat_markup_of_plain_tokens_is_refused_too():
    with pytest.raises(Unsuitable, match=r"holds '\[/INST\]'"):
        opening("<|bos|>[INST] Continue the text. [/INST]").check("clean", "Hello [/INST] The cat")


@pytest.mark.parametrize("text", ["The cat", "Continue the text.", "<b>bold</b> user", "assistant"])
def test_plain_text_is_accepted_inside_a_chat(text: str):
    opening(CHATML).check("clean", text)


def test_chat_markup_without_a_chat_is_the_users_own():
    opening("<|bos|>").check("clean", "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n")


@pytest.mark.parametrize("before", ["", "<bos>"])
@pytest.mark.parametrize("text", ["<s>The cat", "[CLS] The cat", "<\uff5cbegin\u2581of\u2581sentence\uff5c>The cat"])
def test_a_prompt_that_begins_with_another_models_bos_is_refused(before: str, text: str):
    with pytest.raises(Unsuitable, match=r"clean begins with .* which is no token of this model") as error:
        opening(before).check("clean", text)
    assert error.value.kind in FATAL


@pytest.mark.parametrize("text", ["<b>bold</b>", "[1] a list", "<| a", "a <s>"])
def test_marks_of_other_kinds_are_text(text: str):
    opening("<bos>").check("clean", text)


def test_a_space_before_the_first_token_is_no_part_of_it():
    def encode(text: str) -> list[int]:
        return encoder("\u2581")(text)

    Opening(Tokens(encode)).check("clean", "<|im_start|>user\nHello")
