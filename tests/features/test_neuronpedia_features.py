"""Files of Neuronpedia's exports, by the columns of the tables that they are imported into."""

from __future__ import annotations

import gzip
import json
import re

import pytest

from mechstudy.features.neuronpedia_features import BATCH, CREATOR, Export, identifier, write_neuronpedia

EXPORT = Export("tiny", "demo", CREATOR, "2026-01-02T03:04:05+00:00", 3, 64, "text:x.txt", 6, 9)
NUMBER, NUMBERS, TEXTS = (int, float), [(int, float)], [str]
# Columns that are given, with their types. An import takes the columns from the first line: every line has the same.
COLUMNS = {
    "release": {"name": str, "description": str, "creatorName": str, "creatorId": str, "visibility": str,
                "urls": TEXTS, "defaultUmapSourceIds": TEXTS, "createdAt": str},
    "model": {"id": str, "displayName": str, "displayNameShort": str, "creatorId": str, "layers": int,
              "neuronsPerLayer": int, "owner": str, "visibility": str, "inferenceEnabled": bool, "createdAt": str,
              "updatedAt": str},
    "sourceset": {"modelId": str, "name": str, "description": str, "type": str, "creatorName": str, "creatorId": str,
                  "releaseName": str, "urls": TEXTS, "visibility": str, "createdAt": str},
    "source": {"id": str, "modelId": str, "setName": str, "creatorId": str, "visibility": str, "hasDashboards": bool,
               "inferenceEnabled": bool, "dataset": str, "num_prompts": int, "num_tokens_in_prompt": int,
               "createdAt": str},
    "features": {"modelId": str, "layer": str, "index": str, "sourceSetName": str, "creatorId": str, "createdAt": str,
                 "maxActApprox": NUMBER, "frac_nonzero": NUMBER, "hasVector": bool, "pos_str": TEXTS,
                 "pos_values": NUMBERS, "neg_str": TEXTS, "neg_values": NUMBERS,
                 "freq_hist_data_bar_values": NUMBERS, "freq_hist_data_bar_heights": NUMBERS},
    "activations": {"id": str, "tokens": TEXTS, "dataIndex": str, "index": str, "layer": str, "modelId": str,
                    "dataSource": str, "maxValue": NUMBER, "maxValueTokenIndex": int, "minValue": NUMBER,
                    "values": NUMBERS, "creatorId": str, "createdAt": str},
    "explanations": {"id": str, "modelId": str, "layer": str, "index": str, "description": str, "authorId": str,
                     "notes": str, "createdAt": str, "updatedAt": str},
}  # fmt: skip


def page(layer, feature, kind="sae", **fields):
    examples = [{"tokens": ["a", "\0b", "\ud800"], "activations": [0.0, 2.0, -1.0], "peak": 1, "document": 4}]
    return {"layer": layer, "feature": feature, "kind": kind, "frequency": 0.01, "mean_activation": 1.0,
            "max_activation": 2.0, "top_logits": [{"token": " x", "value": 1.5}],
            "bottom_logits": [{"token": " y", "value": -2}], "examples": examples, "graphs": {}} | fields  # fmt: skip


@pytest.fixture
def written(tmp_path):
    pages = [page(0, 3), page(0, 40), page(2, 5, "neurons")]
    assert write_neuronpedia(tmp_path, pages, {(0, 3): "on «x»"}, EXPORT) == ["0-demo", "2-demo-neurons"]
    return tmp_path / "tiny"


def rows(file):
    data = file.read_bytes()
    return [json.loads(line) for line in (gzip.decompress(data) if file.suffix == ".gz" else data).splitlines()]


def is_of(value, kind):
    if isinstance(kind, list):
        return isinstance(value, list) and all(is_of(one, kind[0]) for one in value)
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))


def test_every_row_has_the_columns_of_its_table(written):
    seen = set()
    for file in written.rglob("*.jsonl*"):
        table = file.stem if file.suffix == ".jsonl" else file.parent.name
        seen.add(table)
        for row in rows(file):
            assert set(row) == set(COLUMNS[table]), table
            assert [name for name, kind in COLUMNS[table].items() if not is_of(row[name], kind)] == []
    assert seen == set(COLUMNS)


def test_rows_point_to_rows_that_exist(written):
    for source in ("0-demo", "2-demo-neurons"):
        place = written / source
        [model], [made], [sources] = (rows(place / f"{name}.jsonl") for name in ("model", "source", "sourceset"))
        [release] = rows(place / "release.jsonl")
        neurons = {(r["modelId"], r["layer"], r["index"]) for r in rows(place / "features" / "batch-0.jsonl.gz")}
        assert made["id"] == source and made["setName"] == sources["name"] and sources["releaseName"] == release["name"]
        assert {n[:2] for n in neurons} == {(model["id"], source)}
        for table in ("activations", "explanations"):
            file = place / table / "batch-0.jsonl.gz"
            below = rows(file) if file.exists() else []
            assert {(r["modelId"], r["layer"], r["index"]) for r in below} <= neurons


def test_a_feature_has_the_numbers_of_its_page(written):
    [first, _] = rows(written / "0-demo" / "features" / "batch-0.jsonl.gz")
    assert (first["index"], first["frac_nonzero"], first["maxActApprox"]) == ("3", 0.01, 2.0)
    assert (first["pos_str"], first["pos_values"]) == ([" x"], [1.5])
    [row, _] = rows(written / "0-demo" / "activations" / "batch-0.jsonl.gz")
    assert (row["values"], row["maxValue"], row["maxValueTokenIndex"], row["minValue"]) == (
        [0.0, 2.0, -1.0],
        2.0,
        1,
        -1.0,
    )
    [said] = rows(written / "0-demo" / "explanations" / "batch-0.jsonl.gz")
    assert (said["index"], said["description"]) == ("3", "on «x»")


def test_a_histogram_is_bins_from_the_smallest_to_the_largest(tmp_path):
    histogram = {"bin_width": 0.5, "positive": [7, 0, 2], "negative": [3, 1]}
    write_neuronpedia(tmp_path, [page(0, 3, histogram=histogram), page(0, 4)], {}, EXPORT)
    first, second = rows(tmp_path / "tiny" / "0-demo" / "features" / "batch-0.jsonl.gz")
    assert first["freq_hist_data_bar_values"] == [-0.75, -0.25, 0.25, 0.75, 1.25]
    assert first["freq_hist_data_bar_heights"] == [1, 3, 7, 0, 2]
    assert second["freq_hist_data_bar_values"] == second["freq_hist_data_bar_heights"] == []


def test_tokens_are_text_that_a_database_takes(written):
    [row, _] = rows(written / "0-demo" / "activations" / "batch-0.jsonl.gz")
    assert row["tokens"] == ["a", " b", "?"]


def test_ids_differ_by_row_and_are_the_same_in_each_export(written, tmp_path):
    write_neuronpedia(tmp_path / "again", [page(0, 3), page(0, 40)], {(0, 3): "on «x»"}, EXPORT)
    for table in ("activations", "explanations", "features"):
        file = written / "0-demo" / table / "batch-0.jsonl.gz"
        assert file.read_bytes() == (tmp_path / "again" / "tiny" / "0-demo" / table / file.name).read_bytes()
    ids = [row["id"] for row in rows(written / "0-demo" / "activations" / "batch-0.jsonl.gz")]
    assert len(set(ids)) == len(ids) and all(re.fullmatch(r"c[0-9a-f]{24}", one) for one in ids)


def test_many_features_are_in_several_batches(tmp_path):
    write_neuronpedia(tmp_path, [page(0, i) for i in range(BATCH + 1)], {}, EXPORT)
    files = sorted((tmp_path / "tiny" / "0-demo" / "features").iterdir())
    assert [file.name for file in files] == ["batch-0.jsonl.gz", "batch-1.jsonl.gz"]
    assert [len(rows(file)) for file in files] == [BATCH, 1]


@pytest.mark.parametrize(("name", "id"), [("SmolLM2-135M-Instruct", "smollm2-135m-instruct"), ("my study!", "my-study"),
                                          ("../x", "x"), ("é", "x")])  # fmt: skip
def test_identifiers_are_lower_case_without_paths(name, id):
    assert identifier(name) == id
