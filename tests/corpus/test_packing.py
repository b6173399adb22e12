"""Packed rows: separators between documents, one BOS, nothing else added."""

from __future__ import annotations

from mechstudy.corpus.packing import Packer, bos_tokens, separator_token
from tests.support.tiny import tiny_tokenizer


def test_the_stream_of_rows_is_the_documents_with_separators_between():
    packer = Packer(3, 4, [], 9)
    for document in ([1, 2, 3], [4, 5], [6, 7, 8, 8, 8, 8]):
        packer.add(document)
    assert packer.rows.tolist() == [[9, 1, 2, 3], [9, 4, 5, 9], [6, 7, 8, 8]]


def test_a_separator_that_is_bos_is_not_doubled_at_the_start_of_a_row():
    packer = Packer(3, 4, [9], 9)
    for document in ([1, 2, 3], [4, 5], [6, 7, 8]):
        packer.add(document)
    assert packer.rows.tolist() == [[9, 1, 2, 3], [9, 4, 5, 9], [9, 6, 7, 8]]


def test_the_separator_is_endoftext_then_bos_then_eos():
    tokenizer = tiny_tokenizer()
    assert (separator_token(tokenizer), bos_tokens(tokenizer), bos_tokens(tiny_tokenizer(True))) == (0, [], [0])
    tokenizer.add_special_tokens({"eos_token": "<|endoftext|>"})
    assert separator_token(tokenizer) == tokenizer.eos_token_id != 0
    bare = tiny_tokenizer()
    bare.bos_token = None
    assert separator_token(bare) is None
    bare.eos_token = "!"
    assert separator_token(bare) == bare.eos_token_id
