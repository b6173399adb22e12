"""Studies whose prompts have several answers, or answers of which all tokens count, from prompts to the report."""

from __future__ import annotations

import csv
import json
import math
import re
from html import unescape
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from mechstudy.behaviours.schema import from_jsonl
from mechstudy.cli.app import app
from mechstudy.models.loading import load_folder
from tests.support.tiny_study import write_study

pytestmark = pytest.mark.slow

INTERVENTIONS = (
    "interventions: {bootstrap: 100, permutations: 99, n_groups: 1, group_size: 2, min_presence: 0.1,"
    " alphas: [-1, 0, 1], resample_draws: 1, n_edges: 4, patching: {layers: '0', n_pairs: 4}}\n"
)
NAMES = {"sets": "difference of log-sum-exp logits", "means": "difference of mean logits"}


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = write_study(tmp_path_factory.mktemp("study"), n_prompts=6)
    lines = [json.loads(line) for line in (file.parent / "prompts.jsonl").read_text().splitlines()]
    sets = [line | {"answer": ["x", "z", "w"], "wrong_answer": ["y", "v"]} for line in lines]
    (file.parent / "sets.jsonl").write_text("\n".join(map(json.dumps, [*sets, sets[0] | {"answer": ["x", "y"]}])))
    behaviours = "{name: sets, file: sets.jsonl}, {name: means, file: sets.jsonl, answer_sets: mean}"
    whole = [line | {"answer": "xzw", "wrong_answer": "xyv"} for line in lines]
    (file.parent / "whole.jsonl").write_text("\n".join(map(json.dumps, [*whole, whole[0] | {"wrong_answer": "xz"}])))
    behaviours += ", {name: wholes, file: whole.jsonl, answer_tokens: all}"
    text = re.sub(r"behaviours: .*", f"behaviours: [{behaviours}]", file.read_text())
    file.write_text(text.replace("attribution: {n_prompts: 6,", "attribution: {n_prompts: 3,") + INTERVENTIONS)
    return file


@pytest.fixture(scope="module")
def run(study: Path) -> Path:
    done = CliRunner().invoke(app, ["run", str(study), "--out", str(study.parent / "run")])
    assert done.exit_code == 0, done.output
    assert "1 of 13 lines are left out: 1 answers begin with the same token" in done.stderr
    assert "1 of 13 lines are left out: 1 one answer begins with the other" in done.stderr
    return study.parent / "run"


def folder(run: Path, phase: str, behaviour: str) -> Path:
    [manifest] = (run / "artifacts" / phase).glob(f"*{behaviour}*/manifest.json")
    return manifest.parent


def content(run: Path, phase: str, behaviour: str, name: str = "summary.json") -> dict[str, Any]:
    return json.loads((folder(run, phase, behaviour) / name).read_text())


def rows(run: Path, phase: str, behaviour: str, name: str) -> list[dict[str, str]]:
    with (folder(run, phase, behaviour) / name).open(newline="") as file:
        return list(csv.DictReader(file))


def by_hand(logits: torch.Tensor, pair: Any, behaviour: str) -> float:
    """The contrast of a pair's answers, worked out one logit at a time."""

    def side(answers: Any) -> float:
        values = [float(logits[tokens[0]]) for tokens in answers]
        return sum(values) / len(values) if behaviour == "means" else math.log(sum(map(math.exp, values)))

    return side(pair.all_answer_tokens) - side(pair.all_wrong_tokens)


@pytest.mark.parametrize("behaviour", NAMES)
def test_every_phase_states_the_metric(run: Path, behaviour: str) -> None:
    name = NAMES[behaviour]
    for phase in ("baseline", "intervene"):
        assert content(run, phase, behaviour)["metric"] == name, phase
    assert content(run, "attribute", behaviour, "aggregate.json")["metric"] == name
    graph = content(run, "attribute", behaviour, f"graphs/{behaviour}-000.json")
    ours = graph["metadata"]["mechstudy"]
    assert (ours["metric"], ours["answers"], ours["wrong_answers"]) == (name, ["x", "z", "w"], ["y", "v"])
    [logit] = [node["clerp"] for node in graph["nodes"] if node["feature_type"] == "logit"]
    combine = "mean" if behaviour == "means" else "logsumexp"
    start = f'{combine}(logit("x"), logit("z"), logit("w")) - {combine}(logit("y"), logit("v")) = '
    assert logit == f"{start}{ours['logit_difference']:.3f}"


@pytest.mark.parametrize("behaviour", NAMES)
def test_numbers_of_every_phase_are_those_of_the_sets(study: Path, run: Path, behaviour: str) -> None:
    model = load_folder(study.parent / "model")
    pairs = {
        pair.id: pair
        for s in ("train", "test")
        for pair in from_jsonl(folder(run, "prompts", behaviour) / f"{s}.jsonl")
    }
    expected = {
        name: by_hand(model.forward(torch.tensor([pair.clean_tokens])).logits[0].double(), pair, behaviour)
        for name, pair in pairs.items()
    }
    scored = [row for s in ("train", "test") for row in rows(run, "baseline", behaviour, f"{s}.csv")]
    assert {r["id"]: float(r["logit_difference"]) for r in scored} == pytest.approx(expected, abs=1e-5)
    samples = rows(run, "intervene", behaviour, "results.csv")
    assert all(float(r["clean"]) == pytest.approx(expected[r["prompt_id"]], abs=1e-5) for r in samples)
    for entry in content(run, "attribute", behaviour, "scores.json")["per_prompt"]:
        ours = content(run, "attribute", behaviour, f"graphs/{entry['slug']}.json")["metadata"]["mechstudy"]
        assert ours["logit_difference"] == pytest.approx(expected[entry["prompt_id"]], abs=1e-5)
        assert ours["ledger"]["total"] == pytest.approx(expected[entry["prompt_id"]], abs=1e-4)


@pytest.mark.parametrize("behaviour", NAMES)
def test_frozen_edges_agree_with_the_graphs(run: Path, behaviour: str) -> None:
    edges = content(run, "intervene", behaviour)["edges"]
    assert edges["n"] and edges["max_relative_error_frozen"] < 1e-4


def forced(model: Any, pair: Any) -> tuple[list[float], list[float]]:
    """Log-probabilities of the tokens of both answers, worked out one token at a time."""
    sides: list[list[float]] = []
    for answer in (pair.answer_tokens, pair.wrong_tokens):
        tokens, values = list(pair.clean_tokens), []
        for token in answer:
            logits = model.forward(torch.tensor([tokens])).logits[0].double()
            values.append(float(torch.log_softmax(logits, 0)[token]))
            tokens.append(token)
        sides.append(values)
    return sides[0], sides[1]


def test_whole_answers_are_compared_in_every_phase(study: Path, run: Path) -> None:
    model = load_folder(study.parent / "model")
    files = [folder(run, "prompts", "wholes") / f"{s}.jsonl" for s in ("train", "test")]
    pairs = {pair.id: pair for file in files for pair in from_jsonl(file)}
    expected = {name: forced(model, pair) for name, pair in pairs.items()}
    metric = {name: sum(right) - sum(wrong) for name, (right, wrong) in expected.items()}
    for phase in ("baseline", "intervene"):
        assert content(run, phase, "wholes")["metric"] == "difference of whole answers' log-probabilities", phase
    for row in (row for s in ("train", "test") for row in rows(run, "baseline", "wholes", f"{s}.csv")):
        assert float(row["logit_difference"]) == pytest.approx(metric[row["id"]], abs=1e-4)
        shares = [float(x) for x in row["token_logprobs_answer"].split()]
        assert shares == pytest.approx(expected[row["id"]][0], abs=1e-5)
    for row in rows(run, "intervene", "wholes", "results.csv"):
        assert float(row["clean"]) == pytest.approx(metric[row["prompt_id"]], abs=1e-4)
        moved = [sum(map(float, row[name].split())) for name in ("tokens_answer", "tokens_wrong")]
        assert float(row["value"]) == pytest.approx(moved[0] - moved[1], abs=1e-5)
    for entry in content(run, "attribute", "wholes", "scores.json")["per_prompt"]:
        ours = content(run, "attribute", "wholes", f"graphs/{entry['slug']}.json")["metadata"]["mechstudy"]
        right, wrong = expected[entry["prompt_id"]]
        stated = sum(right[1:]) - wrong[1]  # the first tokens are the same
        assert ours["ledger"]["target"] == pytest.approx(stated, abs=1e-4)
        assert ours["ledger"]["total"] == pytest.approx(stated, rel=1e-4)
        assert [part["target"] for part in ours["ledgers"]] == pytest.approx([right[1] - wrong[1], right[2]], abs=1e-4)


def test_frozen_edges_of_whole_answers_agree(run: Path) -> None:
    edges = content(run, "intervene", "wholes")["edges"]
    assert edges["n"] and edges["max_relative_error_frozen"] < 1e-4
    aggregate = content(run, "attribute", "wholes", "aggregate.json")
    assert "answer tokens" in aggregate["positions"]
    assert all("answer tokens" not in str(group) for group in content(run, "intervene", "wholes")["groups"])


def test_the_report_names_the_sets_and_the_metric(run: Path) -> None:
    [report] = [index.parent for index in (run / "artifacts" / "report").glob("*/index.html")]
    page = unescape(re.sub(r"<[^>]*>", " ", (report / "behaviour-means.html").read_text()))
    assert "Mean difference of mean logits" in page and "x|z|w" in page and "y|v" in page
    assert "difference of log-sum-exp logits" in unescape((report / "index.html").read_text())


def test_an_unknown_way_to_combine_is_refused_at_its_line(study: Path) -> None:
    done = CliRunner().invoke(app, ["plan", str(study), "--set", "behaviours.0.answer_sets=max"])
    assert done.exit_code == 2 and "answer_sets" in done.output and "logsumexp" in done.output
