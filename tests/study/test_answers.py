"""Studies whose prompts have several right and several wrong answers, from prompts to the report."""

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
    text = re.sub(r"behaviours: .*", f"behaviours: [{behaviours}]", file.read_text())
    file.write_text(text.replace("attribution: {n_prompts: 6,", "attribution: {n_prompts: 3,") + INTERVENTIONS)
    return file


@pytest.fixture(scope="module")
def run(study: Path) -> Path:
    done = CliRunner().invoke(app, ["run", str(study), "--out", str(study.parent / "run")])
    assert done.exit_code == 0, done.output
    assert "1 of 13 lines are left out: 1 answers begin with the same token" in done.stderr
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


def test_the_report_names_the_sets_and_the_metric(run: Path) -> None:
    [report] = [index.parent for index in (run / "artifacts" / "report").glob("*/index.html")]
    page = unescape(re.sub(r"<[^>]*>", " ", (report / "means.html").read_text()))
    assert "Mean difference of mean logits" in page and "x | z | w" in page and "y | v" in page
    assert "difference of log-sum-exp logits" in unescape((report / "index.html").read_text())


def test_the_field_is_part_of_ids_only_where_it_is_set(study: Path) -> None:
    def ids(*sets: str) -> dict[str, str]:
        plan = json.loads(CliRunner().invoke(app, ["plan", str(study), "--json", *sets]).stdout)
        return {unit["unit"]: unit["id"] for unit in plan["units"]}

    plain, means = ids(), ids("--set", "behaviours.0.answer_sets=mean")
    assert ids("--set", "behaviours.0.answer_sets=null") == plain
    changed = {name for name in plain if plain[name] != means[name]}
    assert "baseline[sets]" in changed and "baseline[means]" not in changed


def test_an_unknown_way_to_combine_is_refused_at_its_line(study: Path) -> None:
    done = CliRunner().invoke(app, ["plan", str(study), "--set", "behaviours.0.answer_sets=max"])
    assert done.exit_code == 2 and "answer_sets" in done.output and "logsumexp" in done.output
