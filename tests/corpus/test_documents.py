"""Documents of every kind of source; what is wrong with a bad one, by file and line."""

from __future__ import annotations

import gzip
import sys

import numpy as np
import polars as pl
import pytest

from mechstudy.core.errors import MechstudyError
from mechstudy.corpus.config import Source
from mechstudy.corpus.documents import read_documents
from tests.support.corpus_files import texts, write_jsonl


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


def test_hub_datasets_are_streamed_by_configuration_split_and_revision(monkeypatch):
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


def test_half_a_surrogate_pair_is_an_error_of_its_line(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "whole"}\n{"text": "ab\\ud83d"}\n')
    with pytest.raises(MechstudyError, match="holds half a surrogate pair") as error:
        read("jsonl", tmp_path / "a.jsonl")
    assert str(error.value.where).endswith("a.jsonl:2") and error.value.facts["at"] == "character 2"
    (tmp_path / "a.jsonl").write_text('{"text": "ab\\ud83d\\ude00"}\n')
    assert read("jsonl", tmp_path / "a.jsonl") == ["ab\U0001f600"]


def test_the_mark_that_windows_editors_write_is_no_part_of_the_first_line(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'\xef\xbb\xbf{"text": "one"}\n{"text": "two"}\n')
    assert sorted(read("jsonl", tmp_path / "a.jsonl")) == ["one", "two"]


@pytest.mark.parametrize("line", ["[" * 100_000, '{"text": 1e', '{"text": ' + "9" * 5000 + "}"])
def test_a_line_that_is_no_json_has_its_place_and_a_fix(tmp_path, line):
    (tmp_path / "a.jsonl").write_text(line + "\n")
    with pytest.raises(MechstudyError, match=r"the line is not JSON|is int, not text") as error:
        read("jsonl", tmp_path / "a.jsonl")
    assert str(error.value.where).endswith("a.jsonl:1") and error.value.fix
