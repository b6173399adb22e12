"""Attribution and interventions go on with smaller batches where memory runs out, and come to the same numbers."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from mechstudy.circuits import attribute as attribution
from mechstudy.circuits.config import AttributionConfig
from mechstudy.core.progress import NullProgress
from mechstudy.interventions import edges, runner
from mechstudy.interventions.config import InterventionConfig
from mechstudy.interventions.edges import LOGIT, EdgeCheck, EdgeInstance, measure_edges
from mechstudy.interventions.engine import SetFeature
from mechstudy.interventions.features import FeatureAt, NamedActivations
from mechstudy.interventions.results import read_csv
from mechstudy.interventions.runner import run_interventions
from mechstudy.interventions.samples import Plan, Suite, Variant
from mechstudy.machine.runtime import Runtime
from mechstudy.models.batches import captured
from mechstudy.models.sites import Site
from mechstudy.runner.processes.leader import Leader
from mechstudy.runner.processes.progress import LeaderProgress
from mechstudy.runner.processes.task import Task
from mechstudy.runner.run_unit import Job, Options
from mechstudy.study.phases import intervene
from tests.support.interventions_world import pairs, transcoders
from tests.support.tiny import tiny_model

CONFIG = InterventionConfig(n_samples=4, n_edges=2, edge_prompts=2, save_every=5)


def short_of_memory(function, rows_of, most: int):
    """The function, out of memory where it is given more than so many rows."""
    tried = []

    def run(*args, **kwargs):
        tried.append(rows_of(*args))
        if tried[-1] > most:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")
        return function(*args, **kwargs)

    return run, tried


def test_a_graphs_rows_are_computed_fewer_at_a_time(monkeypatch):
    model = tiny_model("llama")
    config = AttributionConfig(max_features=20)
    tokens = torch.tensor(pairs(1)[0].clean_tokens)
    how = {"answer": 5, "wrong_answer": 9}
    whole = attribution.attribute(model, transcoders(model), tokens, config, **how)
    run, tried = short_of_memory(attribution.direct_effects, lambda _p, _i, targets: len(targets), 3)
    monkeypatch.setattr(attribution, "direct_effects", run)
    progress = NullProgress()
    parts = attribution.attribute(model, transcoders(model), tokens, config, **how, progress=progress)
    assert max(tried) > 3 and any("out of memory" in text for text in progress.messages)
    assert torch.equal(parts.column_R, whole.column_R)
    torch.testing.assert_close(parts.A_RS, whole.A_RS, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("most", [1, 3, 5])
def test_interventions_run_in_parts_and_nothing_stays_nothing(monkeypatch, tmp_path, most):
    model, prompts = tiny_model("llama"), pairs(4)
    dictionaries = transcoders(model)
    variants = [
        Variant("ablation_zero", f"feature {n}", "", "effect", 0, lambda _, n=n: [SetFeature(0, n, 2)])
        for n in range(3)
    ] + [Variant("sham", "sham", "", "sham", 0, lambda _: [SetFeature(0, 1, 2, None)])]
    plan = Plan("b", (), {}, {}, (Suite("features", tuple(prompts), tuple(variants)),), (0,), ("subject",))
    whole = read_csv(run_interventions(model, dictionaries, plan, CONFIG, tmp_path / "whole", batch_tokens=60))
    run, tried = short_of_memory(runner.edited_run, lambda _m, _d, clean, _rows: len(clean.tokens_BT), most)
    monkeypatch.setattr(runner, "edited_run", run)
    progress = NullProgress()
    parts = read_csv(
        run_interventions(model, dictionaries, plan, CONFIG, tmp_path / "p", batch_tokens=60, progress=progress)
    )
    assert max(tried) > most and any("out of memory" in text for text in progress.messages)
    assert len(parts) == len(whole) == 16
    for a, b in zip(parts, whole, strict=True):
        assert (a["item"], a["prompt_id"]) == (b["item"], b["prompt_id"])
        assert float(a["value"]) == pytest.approx(float(b["value"]), abs=1e-12)
        assert float(a["corrupted"]) == pytest.approx(float(b["corrupted"]), abs=1e-12)
    assert all(float(r["value"]) == 0 and float(r["kl"]) == 0 for r in parts if r["kind"] == "sham")


def test_edges_are_measured_fewer_at_a_time(monkeypatch, tmp_path):
    model, prompts = tiny_model("llama"), pairs(2)
    dictionaries = transcoders(model)
    checks = [
        EdgeCheck(FeatureAt(0, n, "subject"), LOGIT, tuple(EdgeInstance(pair, 0.1) for pair in prompts))
        for n in range(2)
    ]
    whole = read_csv(measure_edges(model, dictionaries, checks, CONFIG, tmp_path, batch_tokens=60))
    run, tried = short_of_memory(edges.edited_run, lambda _m, _d, clean, _rows: len(clean.tokens_BT), 1)
    monkeypatch.setattr(edges, "edited_run", run)
    frozen = edges.FrozenForward.run
    monkeypatch.setattr(edges.FrozenForward, "run", short_of_memory(frozen, lambda _self, d: len(d), 1)[0])
    parts = read_csv(measure_edges(model, dictionaries, checks, CONFIG, tmp_path / "parts", batch_tokens=60))
    assert max(tried) == 2 and len(parts) == len(whole) == 4
    for a, b in zip(parts, whole, strict=True):
        assert float(a["frozen"]) == pytest.approx(float(b["frozen"]), abs=1e-12)
        assert float(a["live"]) == pytest.approx(float(b["live"]), abs=1e-12)


def test_activations_of_prompts_are_taken_fewer_at_a_time(monkeypatch):
    model, prompts = tiny_model("llama"), pairs(6)
    whole = NamedActivations(model, transcoders(model), prompts).means(2, "subject")
    tokens, sites = torch.tensor([p.clean_tokens for p in pairs(4, (7,))]), [Site("mlp_in", 1), Site("resid_post", 2)]
    expected = captured(model, tokens, sites)
    run, tried = short_of_memory(model.forward, lambda tokens_BT: len(tokens_BT), 1)
    monkeypatch.setattr(model, "forward", run)
    torch.testing.assert_close(captured(model, tokens, sites), expected, rtol=1e-12, atol=1e-12)
    parts = NamedActivations(model, transcoders(model), prompts).means(2, "subject")
    assert max(tried) > 1
    torch.testing.assert_close(parts, whole, rtol=1e-12, atol=1e-12)


def test_samples_keep_the_order_of_the_process_that_began(tmp_path):
    out = SimpleNamespace(scratch=tmp_path)
    assert intervene._cut(out, Runtime(batch_tokens=4096)) == 4096
    assert intervene._cut(out, Runtime(batch_tokens=64)) == 4096  # after a restart with less, and in a later run


def test_helping_processes_cut_batches_as_the_leader_does_after_a_restart(tmp_path):
    from tests.support.toy_units import unit

    a = unit("capture[mine]", entry="digest")
    job = Job(
        replace(a, entry="mechstudy.study.phases.capture:run_corpus"), "0" * 64, {}, tmp_path, tmp_path, Options()
    )
    leader = Leader(job, 2, 1, "cpu", LeaderProgress(tmp_path, phase="capture", unit=a.name), {}, tmp_path)
    leader.use_batch(1024)
    task = Task.of(leader._job, 1, 2, 1, {}, None)
    assert Options.from_json(task.options).batch_tokens == 1024
