"""A study whose test prompts are of one group, or of three, and whose corpus is the model's own text.

The plan's notes, and every page of the report.
"""

from __future__ import annotations

import json
import re
from html import unescape
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from mechstudy.cli.app import app
from mechstudy.corpus.sampling import sample_rows
from mechstudy.corpus.token_rows import Corpus
from mechstudy.models.loading import load_folder
from tests.support.tiny_study import write_study

pytestmark = pytest.mark.slow  # whole studies

ONE, THREE = "one", "three"
INTERVENTIONS = (
    "interventions: {bootstrap: 100, permutations: 99, ci: 0.99, n_groups: 1, group_size: 2, min_presence: 0.1,"
    " alphas: [-1, 0, 1], resample_draws: 1, n_edges: 4, patching: {layers: '0', n_pairs: 4}}\n"
)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = write_study(tmp_path_factory.mktemp("study"), n_prompts=6)
    lines = [json.loads(line) for line in (file.parent / "prompts.jsonl").read_text().splitlines()]
    behaviours = []
    for name, n_groups in ((ONE, 1), (THREE, 3)):
        grouped = [line | {"group": f"{line['split']} {i // 2 % n_groups}"} for i, line in enumerate(lines)]
        (file.parent / f"{name}.jsonl").write_text("\n".join(map(json.dumps, grouped)))
        behaviours.append(f"{{name: {name}, file: {name}.jsonl}}")
    text = re.sub(r"behaviours: .*", f"behaviours: [{', '.join(behaviours)}]", file.read_text())
    text = text.replace("source: 'text:text.txt'", "source: self, sample_batch: 32")
    file.write_text(text.replace("attribution: {n_prompts: 6,", "attribution: {n_prompts: 2,") + INTERVENTIONS)
    return file


@pytest.fixture(scope="module")
def run(study: Path) -> Path:
    done = CliRunner().invoke(app, ["run", str(study), "--out", str(study.parent / "run")])
    assert done.exit_code == 0, done.output
    assert "one: the test prompts are of one group" in done.stderr
    return study.parent / "run"


def summary(run: Path, phase: str, behaviour: str) -> dict:
    [file] = (run / "artifacts" / phase).glob(f"*{behaviour}*/summary.json")
    return json.loads(file.read_text())


def pages(run: Path) -> dict[str, str]:
    """The text of every page, without tags, and of every exported figure."""
    [report] = [index.parent for index in (run / "artifacts" / "report").glob("*/index.html")]
    files = [*report.glob("*.html"), *report.glob("figures/*.svg")]
    return {file.name: unescape(re.sub(r"<[^>]*>", " ", file.read_text())) for file in files}


def test_the_plan_says_beforehand_that_no_claim_can_hold(study: Path) -> None:
    notes = json.loads(CliRunner().invoke(app, ["plan", str(study), "--json"]).stdout)["notes"]
    assert any(note.startswith("one: ") and "p is 1" in note and "no claim can hold" in note for note in notes)
    assert any(note.startswith("three: ") and "p cannot fall below 0.26" in note for note in notes)


def test_text_of_another_model_is_noted_where_the_study_uses_it(study: Path) -> None:
    of_self, of_bundled = (
        json.loads(CliRunner().invoke(app, ["plan", str(study), "--json", *sets]).stdout)
        for sets in ([], ["--set", "corpus.source=bundled"])
    )
    assert not any("not of this model" in note for note in of_self["notes"])
    assert any("text of SmolLM2-135M-Instruct, not of this model" in note for note in of_bundled["notes"])
    [unit] = [unit for unit in of_self["units"] if unit["unit"] == "corpus"]
    assert unit["flops"] > 0 and unit["note"] == "5 batches of text sampled from the model"


def test_the_corpus_is_sampled_from_the_studys_model(study: Path, run: Path) -> None:
    [folder] = [file.parent for file in (run / "artifacts" / "corpus").glob("*/corpus.json")]
    corpus = Corpus.load(folder)
    spec = json.loads((folder / "manifest.json").read_text())["spec"]
    model = load_folder(study.parent / "model", dtype="bfloat16")
    rows = sample_rows(model, 160, 32, temperature=0.8, seed=spec["seed"], batch=32)
    assert torch.equal(torch.cat([corpus.held_out, corpus.train]), rows)


def test_numbers_of_one_group_have_no_interval(run: Path) -> None:
    tests = summary(run, "intervene", ONE)["tests"].values()
    assert tests and all(test["ci95"] is None and test["p"] == 1 and test["n_clusters"] == 1 for test in tests)
    split = summary(run, "baseline", ONE)["splits"]["test"]
    assert split["accuracy_ci95"] is None and split["ci95"] is None


def test_every_page_gives_a_reason_where_there_is_no_interval(run: Path) -> None:
    for name, text in pages(run).items():
        assert not re.search(r"\b(None|NaN|nan)\b", text.replace("None in this view", "")), name
    texts = pages(run)
    assert "n/a (one group)" in texts["behaviour-one.html"] and "n/a (one group)" in texts["interventions-one.html"]
    assert "99% CI" in texts["interventions-three.html"] and "95% CI" not in texts["interventions-three.html"]
    assert "n/a (one group)" in texts["interventions-one.svg"]


def test_verdicts_name_too_few_groups(run: Path) -> None:
    overview = pages(run)["index.html"]
    assert "Too few groups: all prompts are of one group" in overview
    assert "Too few groups: with 3 groups of prompts p cannot fall below 0.25" in overview
    assert "These data do not distinguish the effect from zero" not in overview
