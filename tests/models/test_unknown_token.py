"""The unknown token of a tokenizer, as it is in its file and as transformers has it."""

from __future__ import annotations

import pytest
import transformers
from tokenizers import Tokenizer, models

from mechstudy.models.tokenizer import bare_tokenizer
from mechstudy.models.unknown_token import unknown_token
from tests.support.tiny import tiny_tokenizer
from tests.support.word_tokenizer import UNK, word_tokenizer

VOCABULARY = {"a": 0, UNK: 1}


def test_words_that_are_not_in_the_vocabulary_are_counted():
    tokenizer = word_tokenizer("cat")
    unknown = unknown_token(tokenizer, "acme/tiny")
    assert unknown is not None and (unknown.id, unknown.text) == (1, UNK) and "acme/tiny" in unknown.tokenizer
    assert unknown.among(tokenizer("the cat sat").input_ids) == 2


@pytest.mark.parametrize(
    "model",
    [
        models.WordLevel(VOCABULARY, unk_token=UNK),
        models.BPE(VOCABULARY, [], unk_token=UNK),
        models.WordPiece(VOCABULARY, unk_token=UNK),
        models.Unigram([("a", 0.0), (UNK, 0.0)], unk_id=1),
    ],
    ids=lambda model: type(model).__name__,
)
def test_the_file_alone_says_the_unknown_token(model, tmp_path):
    Tokenizer(model).save(str(tmp_path / "tokenizer.json"))
    bare = bare_tokenizer(tmp_path)
    assert bare is not None and bare.unknown is not None and bare.unknown.id == 1
    assert bare.unknown.among(bare.encode("q")) == 1 and bare.unknown.among(bare.encode("a")) == 0
    whole = transformers.PreTrainedTokenizerFast(tokenizer_object=Tokenizer(model))  # its settings name none
    unknown = unknown_token(whole, "m")
    assert unknown is not None and unknown.id == 1


def test_a_tokenizer_of_bytes_has_none():
    byte_level = tiny_tokenizer()
    byte_level.backend_tokenizer.model.unk_token = None
    assert unknown_token(byte_level, "m") is None
