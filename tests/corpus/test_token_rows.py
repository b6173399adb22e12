"""Token rows: exact lengths, BOS, separators, and held-out documents of their own."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch

from mechstudy.core.errors import MechstudyError
from mechstudy.core.progress import NullProgress
from mechstudy.corpus.config import CorpusConfig
from mechstudy.corpus.token_rows import Corpus, build_corpus
from tests.support.corpus_files import texts, write_jsonl
from tests.support.tiny import tiny_tokenizer
from tests.support.word_tokenizer import word_tokenizer

BOS = 0


def config(path, kind="jsonl", **fields):
    fields = {"tokens": 320, "held_out_tokens": 128, "context": 32} | fields
    return CorpusConfig(source=f"{kind}:{path}", **fields)


def documents_in(rows: torch.Tensor) -> set[int]:
    return set(rows.flatten().tolist()) - {BOS}


@pytest.mark.parametrize("bos", [False, True])
def test_train_and_held_out_rows_come_from_different_documents(tmp_path, bos):
    corpus = build_corpus(config(write_jsonl(tmp_path / "a.jsonl", texts())), tiny_tokenizer(bos))
    assert corpus.train.shape == (10, 32) and corpus.held_out.shape == (4, 32)
    assert corpus.tokens.dtype == torch.int32
    assert not documents_in(corpus.train) & documents_in(corpus.held_out)


def test_rows_begin_with_one_bos_exactly_when_the_tokenizer_adds_it(tmp_path):
    file = write_jsonl(tmp_path / "a.jsonl", texts())
    with_bos = build_corpus(config(file), tiny_tokenizer(True)).tokens
    assert (with_bos[:, 0] == BOS).all()
    assert not ((with_bos[:, 0] == BOS) & (with_bos[:, 1] == BOS)).any()
    without = build_corpus(config(file), tiny_tokenizer(False)).tokens
    assert (without[:, 0] != BOS).any()


def test_more_training_tokens_leave_the_held_out_rows_as_they_are(tmp_path):
    file = write_jsonl(tmp_path / "a.jsonl", texts())
    few = build_corpus(config(file), tiny_tokenizer())
    many = build_corpus(config(file, tokens=640), tiny_tokenizer())
    assert torch.equal(few.held_out, many.held_out)
    assert torch.equal(few.train, many.train[: few.n_train])


def test_the_seed_decides_the_order_of_documents(tmp_path):
    file = write_jsonl(tmp_path / "a.jsonl", texts())
    a, b, c = (build_corpus(config(file, seed=s), tiny_tokenizer()).tokens for s in (1, 1, 2))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


def test_too_little_text_says_how_much_there_is(tmp_path):
    file = write_jsonl(tmp_path / "a.jsonl", texts(12))
    with pytest.raises(MechstudyError, match="not enough text: 3,200 tokens and 128 held out") as caught:
        build_corpus(config(file, tokens=3200), tiny_tokenizer())
    message = str(caught.value)
    found = int(message.split("there are: ")[1].split(" tokens")[0])
    assert found % 32 == 0 and 250 < found < 12 * 30
    assert f"tokens: {found - 128}" in message
    assert build_corpus(config(file, tokens=found - 128), tiny_tokenizer()).n_train == found // 32 - 4
    with pytest.raises(MechstudyError, match="shorter than one row"):
        build_corpus(config(file, context=2000, held_out_tokens=0), tiny_tokenizer())


@pytest.mark.parametrize("held_out", [0, 128])
def test_text_of_which_most_is_unknown_is_refused_with_its_share(tmp_path, held_out):
    file = write_jsonl(tmp_path / "a.jsonl", ["The keys to the cabinet a"] * 200)
    with pytest.raises(MechstudyError, match=r"knows little of the text: 7\d% of its tokens are '<unk>'") as error:
        build_corpus(config(file, held_out_tokens=held_out), word_tokenizer(), name="acme/tiny")
    assert "the tokenizer of acme/tiny" in error.value.what and "a.jsonl" in str(error.value.where)
    assert "50%" in error.value.facts["limit"] and "trained with" in str(error.value.fix)


def test_a_few_unknown_tokens_are_counted_and_said(tmp_path):
    file = write_jsonl(tmp_path / "a.jsonl", ["a b c d e f g h keys"] * 200)
    said = SimpleNamespace(log=[])
    progress = NullProgress()
    progress.log = said.log.append
    corpus = build_corpus(config(file), word_tokenizer(), progress=progress)
    assert corpus.n_unknown == int((corpus.tokens == 1).sum()) > 0
    assert said.log == ["44 of 448 tokens (9.8%) are '<unk>'"]
    corpus.save(tmp_path)
    assert json.loads((tmp_path / "corpus.json").read_text())["n_unknown_tokens"] == corpus.n_unknown
    assert Corpus.load(tmp_path).n_unknown == corpus.n_unknown


def test_a_saved_corpus_is_read_back(tmp_path):
    corpus = build_corpus(config(write_jsonl(tmp_path / "a.jsonl", texts())), tiny_tokenizer())
    corpus.save(tmp_path)
    again = Corpus.load(tmp_path)
    assert torch.equal(again.tokens, corpus.tokens) and again.n_held_out == 4
    assert json.loads((tmp_path / "corpus.json").read_text()) == {
        "source": f"jsonl:{tmp_path / 'a.jsonl'}",
        "n_documents": 14,
        "context": 32,
        "n_tokens": 14 * 32,
        "n_train_documents": 10,
        "n_held_out_documents": 4,
        "dtype": "int32",
    }
    (tmp_path / "tokens.safetensors").write_bytes(b"x")
    with pytest.raises(MechstudyError, match="cannot be read"):
        Corpus.load(tmp_path)
