"""Labels that others gave: each form, and files that are none."""

from __future__ import annotations

import gzip
import json

import pytest

from mechstudy.core.errors import MechstudyError
from mechstudy.features.given_labels import given_labels

ROW = {
    "modelId": "m",
    "layer": "13-my-set",
    "index": "7",
    "description": "plurals\nof nouns",
    "explanationModelName": "big",
}


def test_neuronpedia_s_rows_are_read_packed_or_not(tmp_path):
    lines = "\n".join(json.dumps(row) for row in (ROW, ROW | {"index": 8, "explanationModelName": None}))
    (tmp_path / "a.jsonl").write_text(lines)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    (tmp_path / "a.json").write_text(json.dumps([ROW]))
    expected = {"13/7": ("plurals of nouns", "big"), "13/8": ("plurals of nouns", "Neuronpedia")}
    assert given_labels(tmp_path / "a.jsonl") == given_labels(tmp_path / "a.jsonl.gz") == expected
    assert given_labels(tmp_path / "a.json") == {"13/7": expected["13/7"]}


def test_delphi_s_names_say_which_feature(tmp_path):
    folder = tmp_path / "explanations"
    folder.mkdir()
    (folder / "layers.13.mlp_latent1741.txt").write_text(json.dumps("plurals"))
    (folder / "mlp_act.2_latent5.txt").write_text(json.dumps("digits"))
    assert given_labels(folder) == {"13/1741": ("plurals", "delphi"), "2/5": ("digits", "delphi")}


def test_a_json_object_has_texts_by_feature(tmp_path):
    (tmp_path / "mine.json").write_text(json.dumps({"13/7": "plurals", "2/5": ""}))
    assert given_labels(tmp_path / "mine.json") == {"13/7": ("plurals", "mine.json")}


def test_a_folder_is_read_past_files_of_other_things(tmp_path):
    (tmp_path / "explanations").mkdir()
    (tmp_path / "features.jsonl").write_text(json.dumps({"modelId": "m", "layer": "13-x", "index": "7"}))
    (tmp_path / "config.json").write_text(json.dumps({"width": 16}))
    (tmp_path / "explanations" / "batch-0.jsonl.gz").write_bytes(gzip.compress(json.dumps(ROW).encode()))
    assert given_labels(tmp_path) == {"13/7": ("plurals of nouns", "big")}


@pytest.mark.parametrize(
    ("name", "content", "text"),
    [
        ("a.jsonl", b"{", "no labels of features"),
        ("a.jsonl", b"", "there are no labels"),
        ("a.jsonl", b"[1]", "no labels of features"),
        ("a.jsonl.gz", b"not packed", "no labels of features"),
        ("a.jsonl.gz", gzip.compress(b"{}", mtime=0)[:-4], "no labels of features"),
        ("a.json", b'{"13": "x"}', "no labels of features"),
        ("a.json", b"3", "no labels of features"),
        ("a.json", b"\xff", "no labels of features"),
        ("model_latent7.txt", b'"x"', "does not say which layer"),
        ("layers.1.mlp.2_latent7.txt", b'"x"', "does not say which layer"),
    ],
)
def test_what_is_no_label_is_refused(tmp_path, name, content, text):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(MechstudyError, match=text):
        given_labels(tmp_path / name)


def test_a_place_that_is_not_there_is_named(tmp_path):
    with pytest.raises(MechstudyError, match="no such file or folder"):
        given_labels(tmp_path / "none")
