"""Rows of JSON, JSON Lines, CSV, TSV and Parquet files."""

from __future__ import annotations

import gzip
import json
import lzma
from pathlib import Path

import polars as pl
import pytest

from mechstudy.behaviours.readers import read_rows
from mechstudy.behaviours.user import PromptSource, outline, read_prompts
from mechstudy.core.errors import MechstudyError
from tests.support.fake_tokenizer import FakeTokenizer

ROWS = [{"clean": "to 14", "answer": "04"}, {"clean": 'a "b", c\nd', "answer": " x"}]


def write(path: Path) -> Path:
    if path.suffix == ".parquet":
        pl.DataFrame(ROWS).write_parquet(path)
    elif path.suffix in (".csv", ".tsv"):
        pl.DataFrame(ROWS).write_csv(path, separator="," if path.suffix == ".csv" else "\t")
    else:
        whole = {".json": json.dumps(ROWS, indent=1), ".jsonl": "\n".join(map(json.dumps, ROWS))}
        path.write_text(whole[path.suffix])
    return path


@pytest.mark.parametrize("ending", [".json", ".jsonl", ".csv", ".tsv", ".parquet"])
def test_every_kind_of_file_gives_the_same_rows(tmp_path, ending: str):
    read = read_rows(write(tmp_path / f"mine{ending}"))
    assert list(read.rows.values()) == ROWS and not read.broken


def test_numbers_of_a_csv_stay_the_text_they_are(tmp_path):
    path = tmp_path / "years.csv"
    path.write_bytes(b"\xef\xbb\xbfUnnamed: 0,clean,answer,id\r\n0,to 14,04,\r\n\r\n1,to 15,007,b\r\n")
    assert read_rows(path).rows == {
        2: {"clean": "to 14", "answer": "04"},
        4: {"clean": "to 15", "answer": "007", "id": "b"},
    }


@pytest.mark.parametrize("delimiter", [";", "\t"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_the_header_of_a_csv_says_what_parts_its_fields(tmp_path, delimiter: str, mark: str):
    path = tmp_path / "mine.csv"
    lines = [["clean", "answer", "group"], ["One, two,", " three", "a"], ['"A; B"', " c", "b"]]
    path.write_bytes((mark + "\r\n".join(delimiter.join(line) for line in lines)).encode())
    rows = read_rows(path).rows
    assert rows[2] == {"clean": "One, two,", "answer": " three", "group": "a"}
    assert rows[3] == {"clean": "A; B", "answer": " c", "group": "b"}


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.json"])
@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be"])
def test_utf_16_is_named_once(tmp_path, name: str, encoding: str):
    text = "clean,answer\n" if name == "a.csv" else '{"clean": "a"}\n'
    mark = "\ufeff" if encoding == "utf-16-be" else ""
    (tmp_path / name).write_bytes((mark + text).encode(encoding))
    with pytest.raises(MechstudyError, match="UTF-16"):
        read_rows(tmp_path / name)


def test_a_csv_line_is_numbered_where_it_begins_and_a_short_one_is_broken(tmp_path):
    path = tmp_path / "mine.csv"
    path.write_text('clean,answer\n"two\nlines",x\nonly one field\nc,d\n')
    read = read_rows(path)
    assert list(read.rows) == [2, 5]
    assert {n: error.what for n, error in read.broken.items()} == {4: "1 fields, not 2"}


def test_the_only_array_of_a_json_object_holds_the_rows(tmp_path):
    path = tmp_path / "docstring.json"
    path.write_text(json.dumps({"seq_labels": ["a"], "word_idxs": {"x": 1}, "prompts": ROWS}))
    assert list(read_rows(path).rows.values()) == ROWS


def test_json_lines_under_the_name_of_json_are_read(tmp_path):
    path = tmp_path / "simple_train.json"
    path.write_text("\n".join(map(json.dumps, ROWS)))
    assert list(read_rows(path).rows.values()) == ROWS


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.parquet", b"no parquet", "cannot be read as Parquet"),
        ("a.json", b'"text"', "a JSON str holds no prompts"),
        ("a.csv", b"clean,clean\na,b\n", "two columns are called 'clean'"),
        ("a.csv", b"clean\n\xff\n", "not UTF-8 at byte 7"),
        ("a.csv", b"clean,answer\n", "no prompts in the file"),
    ],
)
def test_a_file_that_cannot_be_read_is_refused(tmp_path, name: str, content: bytes, message: str):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(MechstudyError, match=message):
        read_rows(tmp_path / name)


def test_prompts_of_a_csv_have_positions_as_json(tmp_path):
    rows = [
        {
            "clean": f"The cat near {i} trees",
            "corrupted": f"The cats near {i} trees",
            "answer": " is",
            "wrong_answer": " are",
            "positions": '{"subject": "cat"}',
            "split": ("train", "test")[i % 2],
        }
        for i in range(4)
    ]
    pl.DataFrame(rows).write_csv(tmp_path / "mine.csv")
    source = PromptSource(tmp_path / "mine.csv")
    assert outline(source).positions == ("subject", "last")
    pairs = read_prompts(source, FakeTokenizer(bos=False)).pairs
    assert [pair.positions for pair in pairs["test"]] == [{"subject": 1, "last": 4}] * 2


@pytest.mark.parametrize(
    ("content", "kind"),
    [(gzip.compress(b"{}", mtime=0), "gzip"), (b"PK\x03\x04rest", "a zip or Excel file"), (lzma.compress(b"{}"), "xz")],
    ids=["gzip", "zip", "xz"],
)
@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.json", "a.xlsx"])
def test_a_packed_file_is_called_by_its_kind(tmp_path, name, content, kind):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(MechstudyError, match=f"the file is {kind}, not text") as error:
        read_rows(tmp_path / name)
    assert "unpack it" in str(error.value.fix)
