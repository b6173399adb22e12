"""A whole study of interventions on a tiny model: samples, resuming, summary."""

import json
from collections import Counter

import numpy as np
import pytest
import torch
from scipy.stats import false_discovery_control

from mechstudy.circuits.attribution import attribute
from mechstudy.circuits.config import AttributionConfig
from mechstudy.circuits.donors import donor_numbers
from mechstudy.core.jsonio import json_bytes
from mechstudy.core.progress import NullProgress
from mechstudy.interventions.config import InterventionConfig
from mechstudy.interventions.edge_effects import EdgeEffects
from mechstudy.interventions.edges import LOGIT, EdgeCheck, EdgeInstance, measure_edges
from mechstudy.interventions.effects import LogitEffects, run_interventions
from mechstudy.interventions.engine import SetFeature, clean_run, edited_run
from mechstudy.interventions.features import FeatureAt, NamedActivations
from mechstudy.interventions.results import PartialTable, read_csv
from mechstudy.interventions.runner import Suite, chunks, n_samples
from mechstudy.interventions.samples import build_plan
from mechstudy.interventions.summary import summarise
from mechstudy.models.sites import Site
from tests.support.interventions_world import groups_of, logit_differences, pairs, transcoders
from tests.support.tiny import tiny_model

CONFIG = InterventionConfig(
    n_samples=8, n_groups=2, group_size=4, n_controls=2, alphas=(-2, 0, 2), bootstrap=200, permutations=199,
    patching={"n_pairs": 4}, save_every=25,
)  # fmt: skip


def make_plan(config=CONFIG):
    model = tiny_model("llama")
    dicts = transcoders(model)
    train, test = pairs(10), pairs(8, seed=1)
    groups = groups_of(NamedActivations(model, dicts, train))
    excluded = {(m.layer, m.feature) for g in groups for m in g.members}
    plan = build_plan(model, dicts, train, test, groups, excluded, config, behaviour="b", batch_tokens=200)
    return model, dicts, plan, test


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    model, dicts, plan, test = make_plan()
    out = tmp_path_factory.mktemp("run")
    path = run_interventions(model, dicts, plan, CONFIG, out, batch_tokens=200)
    return model, dicts, plan, test, out, read_csv(path)


def test_the_table_holds_every_sample_once_in_order(finished):
    *_, plan, _, out, rows = finished
    assert [int(r["sample"]) for r in rows] == list(range(len(rows))) and len(rows) == n_samples(plan.suites)
    counts = Counter(r["kind"] for r in rows)
    groups, prompts, items = 2, 8, 3
    assert counts == {
        "ablation_zero": groups * prompts * items,
        "ablation_mean": groups * prompts * items,
        "resampling": groups * prompts * items * 2,
        "patching": groups * prompts * items,
        "sham": prompts,
        "steering": prompts * 3 * (1 + 2 + 1),
        "patching_grid": 4 * 3 * 2,
    }
    assert len(list(out.glob("results_partial_*.csv"))) == -(-len(rows) // 25)


def test_shams_and_doses_of_zero_change_exactly_nothing(finished):
    rows = [r for r in finished[-1] if r["kind"] == "sham" or r["alpha"] == "0.0"]
    assert len(rows) == 8 + 8 * 4 and {(r["value"], r["kl"]) for r in rows} == {("0.0", "0.0")}
    assert {r["value"] for r in finished[-1] if r["kind"] == "ablation_zero"} != {"0.0"}


def test_a_sample_equals_the_same_intervention_run_alone(finished):
    model, dicts, plan, test, _, rows = finished
    members = plan.groups[1].members
    for prompt in test[:2]:
        [row] = [r for r in rows if r["kind"] == "ablation_zero" and r["group"] == plan.groups[1].name
                 and r["item"] == "circuit" and r["prompt_id"] == prompt.id]  # fmt: skip
        clean = clean_run(model, torch.tensor([prompt.clean_tokens]), (0,))
        edits = [SetFeature(m.layer, m.feature, prompt.positions[m.position], 0.0) for m in members]
        after = logit_differences([prompt], edited_run(model, dicts, clean, [edits]).logits)
        before = logit_differences([prompt], clean.logits_BV)
        assert float(row["value"]) == pytest.approx(float(after - before), abs=1e-10)
        assert float(row["clean"]) == pytest.approx(float(before), abs=1e-10) and row["n_edits"] == "4"


def test_patching_the_last_layer_at_the_last_position_closes_the_gap(finished):
    summary = summarise(finished[2], CONFIG, finished[4])
    grid = summary["patching"]
    assert grid["positions"] == ("subject", "last") and grid["layers"] == (0, 1, 2) and grid["n"] == 4
    assert grid["effect"][2][1] == pytest.approx(1, abs=1e-9) and grid["effect"][2][0] == pytest.approx(0, abs=1e-9)
    for r in finished[-1]:
        if r["item"] == "resid_post.2@last":
            assert float(r["metric"]) == pytest.approx(float(r["corrupted"]), abs=1e-9)


class Killed(Exception):
    pass


def dies_after(parts, monkeypatch):
    """Tables whose process is killed when it would save one more part."""
    save = PartialTable.save

    def dies(self):
        if len(list(self.folder.glob(f"{self.name}_partial_*"))) == parts:
            raise Killed
        save(self)

    monkeypatch.setattr(PartialTable, "save", dies)


@pytest.mark.parametrize("parts", [0, 1, 4, 11])
def test_a_killed_run_resumes_to_the_same_bytes(finished, parts, tmp_path, monkeypatch):
    reference = finished[4]
    dies_after(parts, monkeypatch)
    model, dicts, plan, _ = make_plan()
    with pytest.raises(Killed):
        run_interventions(model, dicts, plan, CONFIG, tmp_path, batch_tokens=200)
    assert len(list(tmp_path.glob("results_partial_*"))) == parts and not (tmp_path / "results.csv").exists()
    monkeypatch.undo()
    model, dicts, plan, _ = make_plan()
    batches = []
    measure = LogitEffects.measure
    monkeypatch.setattr(LogitEffects, "measure", lambda *a: batches.append(1) or measure(*a))
    run_interventions(model, dicts, plan, CONFIG, tmp_path, batch_tokens=200)
    names = sorted(p.name for p in reference.glob("results*"))
    assert names == sorted(p.name for p in tmp_path.glob("results*"))
    assert all((reference / n).read_bytes() == (tmp_path / n).read_bytes() for n in names)
    total = sum(1 for chunk in chunks(plan.suites, 200) for _ in chunk.batches())
    assert len(batches) <= total - (25 * parts) // 30  # a batch holds at most 30 samples


def test_a_finished_run_computes_nothing(finished, monkeypatch):
    model, dicts, plan, _, out, _ = finished
    monkeypatch.setattr(model, "forward", lambda *a, **k: pytest.fail("ran a forward"))
    before = (out / "results.csv").read_bytes()
    run_interventions(model, dicts, plan, CONFIG, out, batch_tokens=200)
    assert (out / "results.csv").read_bytes() == before


def test_batch_size_changes_values_by_rounding_only(finished, tmp_path):
    model, dicts, plan, *_ = finished
    small = Suite("features", plan.suites[0].pairs, plan.suites[0].variants[:6])
    plan = type(plan)(**{**plan.__dict__, "suites": (small,)})
    values = {}
    for batch_tokens in (7, 1000):
        out = tmp_path / str(batch_tokens)
        table = read_csv(run_interventions(model, dicts, plan, CONFIG, out, batch_tokens=batch_tokens))
        values[batch_tokens] = {(r["item"], r["kind"], r["prompt_id"]): float(r["value"]) for r in table}
    assert values[7].keys() == values[1000].keys() and len(values[7]) == 48
    assert values[7] == pytest.approx(values[1000], abs=1e-10)


def test_the_summary_has_the_contracts_fields_and_no_nan(finished):
    plan, out = finished[2], finished[4]
    summary = json.loads(json_bytes(summarise(plan, CONFIG, out)))
    assert summary["behaviour"] == "b" and summary["metric"] == "logit difference" and summary["sham_max"] == 0.0
    assert list(summary["tests"]) == ["ablation_zero", "ablation_mean", "resampling", "patching", "steering"]
    fields = {"n", "effect", "ci95", "control_effect", "control_ci95", "p", "p_adjusted", "difference",
              "difference_ci95", "label"}  # fmt: skip
    for test in summary["tests"].values():
        assert fields <= set(test) and test["n"] == 8 and 0 < test["p"] <= test["p_adjusted"] <= 1
        assert test["difference"] == pytest.approx(test["effect"] - test["control_effect"])
    assert len(summary["groups"]) == 2 * 4 + 1 and summary["groups"][0]["members"][0].keys() == {
        "layer", "feature", "position"
    }  # fmt: skip
    assert Counter(d["direction"] for d in summary["dose_response"]) == {
        "features": 3, "random": 3, "difference_of_means": 3
    }  # fmt: skip
    assert summary["edges"] is None and summary["n"] == 8
    assert len(read_csv(out / "dose_response.csv")) == 9 and len(read_csv(out / "patching.csv")) == 6
    assert json_bytes(summarise(plan, CONFIG, out)) == json_bytes(summarise(plan, CONFIG, out))


def test_an_effect_is_the_mean_over_prompts_of_the_mean_over_draws(finished):
    summary, rows = summarise(finished[2], CONFIG, finished[4]), finished[-1]
    name = finished[2].groups[0].name
    for role, field in (("effect", "effect"), ("control", "control_effect")):
        values = [float(r["value"]) for r in rows if (r["kind"], r["group"], r["role"]) == ("resampling", name, role)]
        assert summary["tests"]["resampling"][field] == pytest.approx(np.mean(values))


def test_steerings_effect_is_the_slope_over_alpha(finished):
    summary = summarise(finished[2], CONFIG, finished[4])
    dose = {d["alpha"]: d["effect"] for d in summary["dose_response"] if d["direction"] == "features"}
    assert summary["tests"]["steering"]["effect"] == pytest.approx((dose[2.0] - dose[-2.0]) / 4)


def test_p_values_are_adjusted_over_every_test_of_the_behaviour(finished):
    groups = summarise(finished[2], CONFIG, finished[4])["groups"]
    raw = [g["p"] for g in groups] + [g["p_difference"] for g in groups]
    adjusted = [g["p_adjusted"] for g in groups] + [g["p_difference_adjusted"] for g in groups]
    assert adjusted == pytest.approx(false_discovery_control(raw).tolist())


def test_only_the_kinds_asked_for_run(tmp_path):
    config = CONFIG.model_copy(update={"kinds": ("ablation",), "ablations": ("mean",)})
    model, dicts, plan, _ = make_plan(config)
    rows = read_csv(run_interventions(model, dicts, plan, config, tmp_path))
    assert {r["kind"] for r in rows} == {"ablation_mean", "sham"}
    summary = summarise(plan, config, tmp_path)
    assert list(summary["tests"]) == ["ablation_mean"] and summary["patching"] is None
    assert summary["dose_response"] == []


def test_donors_are_the_same_in_every_run_and_differ_between_draws():
    test = pairs(30)
    first, second = (donor_numbers(test, 50, 3, "b", draw) for draw in (0, 1))
    assert first == donor_numbers(test, 50, 3, "b", 0) and first != second and len(set(first)) > 15
    assert first[5:] == donor_numbers(test[5:], 50, 3, "b", 0)


def own_activation(model, dicts, tokens, feature, at):
    x = model.forward(torch.tensor([tokens]), capture=[Site("mlp_in", feature.layer)]).activations
    return float(dicts[feature.layer].encode(x[Site("mlp_in", feature.layer)][0, at])[feature.feature])


def test_each_kind_sets_features_to_its_own_value(finished):
    """Zero; the mean of discovery prompts; the donor's activation; the corrupted prompt's activation."""
    model, dicts, plan, test, *_ = finished
    train = pairs(10)
    by_kind = {
        (v.kind, v.draw): v for v in plan.suites[0].variants if v.item == "circuit" and v.group == "features 1-4"
    }
    donors = donor_numbers(test, len(train), CONFIG.seed, "b", 1)
    for number, member in enumerate(plan.groups[0].members):
        for i in (0, 3):
            set_to = {key: v.edits(i)[number].value for key, v in by_kind.items()}
            at = test[i].positions[member.position]
            there = [own_activation(model, dicts, p.clean_tokens, member, p.positions[member.position]) for p in train]
            corrupted = own_activation(model, dicts, test[i].corrupted_tokens, member, at)
            assert set_to["ablation_zero", 0] == 0
            assert set_to["ablation_mean", 0] == pytest.approx(np.mean(there), abs=1e-10)
            assert set_to["resampling", 1] == pytest.approx(there[donors[i]], abs=1e-10)
            assert set_to["patching", 0] == pytest.approx(corrupted, abs=1e-10)


def checks_of(model, dicts, prompts):
    """The strongest edges into the target of each prompt's graph."""
    checks = []
    for p in prompts:
        graph = attribute(
            model, dicts, torch.tensor(p.clean_tokens), AttributionConfig(),
            answer=p.answer_tokens[0], wrong_answer=p.wrong_tokens[0],
        )  # fmt: skip
        for c in graph.A_RS[0, : graph.index.n_features].abs().topk(2).indices.tolist():
            source = FeatureAt(int(graph.feature_layer_S[c]), int(graph.feature_id_S[c]), "other")
            at = (int(graph.feature_position_S[c]),)
            checks.append(EdgeCheck(source, LOGIT, (EdgeInstance(p, float(graph.A_RS[0, c]), at),)))
    return checks


def test_the_summary_has_the_measured_edges(finished, tmp_path):
    model, dicts, plan, test, out, _ = finished
    checks = checks_of(model, dicts, test[:3])
    (tmp_path / "results.csv").write_bytes((out / "results.csv").read_bytes())
    config = CONFIG.model_copy(update={"n_edges": 4})
    path = measure_edges(model, dicts, checks, config, tmp_path, progress=NullProgress())
    before = path.read_bytes()
    assert measure_edges(model, dicts, [], config, tmp_path).read_bytes() == before
    edges = summarise(plan, config, tmp_path)["edges"]
    strongest = sorted(checks, key=lambda c: -abs(c.instances[0].weight))[:4]
    assert edges["n"] == len({(str(c.source), str(c.target)) for c in strongest})
    assert [r["source"] for r in edges["rows"]] == list(dict.fromkeys(str(c.source) for c in strongest))
    assert edges["max_relative_error_frozen"] < 1e-6 and edges["rows"][0]["target"] == "logit"
    assert {"source", "target", "predicted", "frozen", "frozen_ci95", "total_live", "total_live_ci95", "n"} <= set(
        edges["rows"][0]
    )


@pytest.mark.parametrize("parts", [0, 1, 2])
def test_killed_edges_resume_to_the_same_bytes_and_leave_no_parts(finished, parts, tmp_path, monkeypatch):
    model, dicts, _, test, *_ = finished
    checks = checks_of(model, dicts, test[:3])
    config = CONFIG.model_copy(update={"n_edges": 6, "save_every": 2})
    whole = measure_edges(model, dicts, checks, config, tmp_path / "whole")
    dies_after(parts, monkeypatch)
    out = tmp_path / "killed"
    with pytest.raises(Killed):
        measure_edges(model, dicts, checks, config, out)
    assert sorted(p.name for p in out.iterdir()) == [f"edges_partial_{i + 1}.csv" for i in range(parts)]
    monkeypatch.undo()
    measured = []
    measure = EdgeEffects.measure
    monkeypatch.setattr(EdgeEffects, "measure", lambda *a: measured.append(1) or measure(*a))
    assert measure_edges(model, dicts, checks, config, out).read_bytes() == whole.read_bytes()
    assert len(measured) == 3 - parts and [p.name for p in out.iterdir()] == ["edges.csv"]
