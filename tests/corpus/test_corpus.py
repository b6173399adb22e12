"""Token rows: exact lengths, BOS, separators, disjoint held-out documents, and what a bad source says."""

from __future__ import annotations

import gzip
import json
import sys

import numpy as np
import polars as pl
import pytest
import torch

from mechstudy.activations.config import CorpusConfig, Source
from mechstudy.core.errors import MechstudyError
from mechstudy.corpus.corpus import Corpus, Packer, bos_tokens, build_corpus, separator_token
from mechstudy.corpus.documents import read_documents
from tests.support.tiny import tiny_tokenizer

BOS = 0


def texts(n=60):
    """Documents of 20 to 29 letters, each made of its own character."""
    return [chr(0x21 + i) * (20 + i % 10) for i in range(n)]


def write_jsonl(path, items, field="text"):
    path.write_text("".join(json.dumps({field: text}) + "\n" for text in items))
    return path


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


def test_the_stream_of_rows_is_the_documents_with_separators_between():
    packer = Packer(3, 4, [], 9)
    for document in ([1, 2, 3], [4, 5], [6, 7, 8, 8, 8, 8]):
        packer.add(document)
    assert packer.rows.tolist() == [[9, 1, 2, 3], [9, 4, 5, 9], [6, 7, 8, 8]]


def test_a_separator_that_is_the_bos_token_is_not_doubled_at_the_start_of_a_row():
    packer = Packer(3, 4, [9], 9)
    for document in ([1, 2, 3], [4, 5], [6, 7, 8]):
        packer.add(document)
    assert packer.rows.tolist() == [[9, 1, 2, 3], [9, 4, 5, 9], [9, 6, 7, 8]]


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


# ------------------------------------------------------------------------ sources


def read(kind, path, field="text", seed=0):
    return list(read_documents(Source(kind, str(path)), field, seed))


def test_every_kind_of_file_gives_all_its_documents(tmp_path):
    write_jsonl(tmp_path / "a.jsonl", texts(5))
    packed = tmp_path / "b.jsonl.gz"
    packed.write_bytes(gzip.compress((tmp_path / "a.jsonl").read_bytes()))
    pl.DataFrame({"text": [*texts(5), None, "  "]}).write_parquet(tmp_path / "c.parquet")
    (tmp_path / "d.txt").write_text("<|endoftext|>\n".join(texts(5)))
    kinds = {"a.jsonl": "jsonl", "b.jsonl.gz": "jsonl", "c.parquet": "parquet", "d.txt": "text"}
    for name, kind in kinds.items():
        assert sorted(read(kind, tmp_path / name)) == texts(5), name
    assert sorted(read("jsonl", tmp_path)) == sorted(texts(5) * 2)
    assert sorted(read("jsonl", tmp_path / "*.jsonl")) == texts(5)


def test_paragraphs_of_a_plain_text_are_joined_into_longer_documents(tmp_path):
    paragraphs = [f"{i} " + "word " * 50 for i in range(40)]
    (tmp_path / "a.txt").write_text("\n\n".join(paragraphs))
    documents = read("text", tmp_path / "a.txt")
    assert 4 <= len(documents) <= 6
    assert sum(d.count("word") for d in documents) == 2000
    assert all(len(d) >= 1900 for d in documents[:-1] if "39 " not in d)


@pytest.mark.parametrize("kind", ["text", "jsonl", "parquet"])
def test_a_missing_or_empty_file_is_named(tmp_path, kind):
    (tmp_path / "corpus.bin").write_bytes(b"")
    with pytest.raises(MechstudyError, match="the file is empty"):
        read(kind, tmp_path / "corpus.bin")
    with pytest.raises(MechstudyError, match="no such file") as caught:
        read(kind, tmp_path / "corpse.bin")
    assert "corpus.bin" in str(caught.value)
    (tmp_path / "folder").mkdir()
    with pytest.raises(MechstudyError, match="file in this folder"):
        read(kind, tmp_path / "folder")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"txt": "a"}', "no field 'text'"),
        (b'{"text": 3}', "is int, not text"),
        (b'["text"]', "not a JSON object"),
        (b'{"text": ', "not JSON"),
        (b'{"text": "\xff"}', "not UTF-8"),
    ],
)
def test_a_bad_line_is_named_by_file_and_number(tmp_path, line, message):
    file = tmp_path / "a.jsonl"
    file.write_bytes(b'{"text": "good"}\n\n' + line + b"\n")
    with pytest.raises(MechstudyError, match=rf"a\.jsonl:3: .*{message}"):
        read("jsonl", file)


def test_a_missing_field_is_answered_with_the_nearest(tmp_path):
    file = write_jsonl(tmp_path / "a.jsonl", texts(2), "content")
    with pytest.raises(MechstudyError) as caught:
        read("jsonl", file, "contents")
    assert "text_field: content" in str(caught.value)


def test_bad_utf8_in_a_text_is_named_by_line(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"good\nbad \xc3(\n")
    with pytest.raises(MechstudyError, match=r"a\.txt:2: the text is not UTF-8"):
        read("text", tmp_path / "a.txt")


def test_bad_parquet_files_are_told_apart(tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"PAR1 no parquet at all PAR1")
    with pytest.raises(MechstudyError, match="not a readable parquet file"):
        read("parquet", tmp_path / "a.parquet")
    pl.DataFrame({"txt": ["a"], "n": [1]}).write_parquet(tmp_path / "b.parquet")
    with pytest.raises(MechstudyError, match="no column 'text'") as caught:
        read("parquet", tmp_path / "b.parquet")
    assert "text_field: txt" in str(caught.value)
    with pytest.raises(MechstudyError, match="column 'n' is Int64, not text"):
        read("parquet", tmp_path / "b.parquet", "n")


def test_a_damaged_compressed_file_is_named(tmp_path):
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b'{"text": "a"}\n' * 100)[:-10])
    with pytest.raises(MechstudyError, match="compressed file is damaged"):
        read("jsonl", tmp_path / "a.jsonl.gz")


# -------------------------------------------------------------------------- hub


def test_hub_datasets_without_the_extra_say_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MechstudyError, match="extra package") as caught:
        list(read_documents(Source.parse("hf:org/set"), "text", 0))
    assert "pip install 'mechstudy[hub]'" in str(caught.value)


class FakeDatasets:
    """Stands for the `datasets` package: records what it was asked for."""

    def __init__(self, rows=(), error=None):
        self.rows, self.error, self.asked = rows, error, None

    def load_dataset(self, *args, **kwargs):
        self.asked = (args, kwargs)
        if self.error:
            raise self.error
        return self

    def shuffle(self, seed, buffer_size):
        return [self.rows[i] for i in np.random.default_rng(seed).permutation(len(self.rows))]


def test_hub_datasets_are_streamed_with_the_named_configuration_split_and_revision(monkeypatch):
    fake = FakeDatasets([{"text": t} for t in [*texts(5), None, ""]])
    monkeypatch.setitem(sys.modules, "datasets", fake)
    found = list(read_documents(Source.parse("hf:org/set:en:test@v1"), "text", 0))
    assert sorted(found) == texts(5)
    assert fake.asked == (("org/set", "en"), {"split": "test", "revision": "v1", "streaming": True})
    with pytest.raises(MechstudyError, match="no field 'body'"):
        list(read_documents(Source.parse("hf:org/set"), "body", 0))


def test_hub_datasets_without_a_network_say_what_to_do_instead(monkeypatch):
    fake = FakeDatasets(error=ConnectionError("Couldn't reach 'org/set' on the Hub"))
    monkeypatch.setitem(sys.modules, "datasets", fake)
    with pytest.raises(MechstudyError, match="cannot be read") as caught:
        list(read_documents(Source.parse("hf:org/set"), "text", 0))
    assert "Couldn't reach" in str(caught.value) and "without a network" in str(caught.value)
