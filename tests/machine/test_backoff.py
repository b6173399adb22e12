"""Attribution and interventions go on with smaller batches where memory runs out, and come to the same numbers."""

from __future__ import annotations

import pickle
from types import SimpleNamespace

import pytest
import torch

from mechstudy import interventions
from mechstudy.circuits import attribution
from mechstudy.circuits.config import AttributionConfig
from mechstudy.core.progress import NullProgress
from mechstudy.interventions.config import InterventionConfig
from mechstudy.interventions.edges import LOGIT, EdgeCheck, EdgeInstance, measure_edges
from mechstudy.interventions.effects import run_interventions
from mechstudy.interventions.engine import SetFeature
from mechstudy.interventions.features import FeatureAt, NamedActivations
from mechstudy.interventions.results import read_csv
from mechstudy.interventions.runner import Suite
from mechstudy.interventions.samples import Plan, Variant
from mechstudy.machine.runtime import Runtime
from mechstudy.machine.runtime_options import RunOptions
from mechstudy.models.batches import captured
from mechstudy.models.sites import Site
from mechstudy.runner.job import Job
from mechstudy.runner.processes import leader as leading
from mechstudy.runner.processes.leader import Leader, LeaderProgress
from mechstudy.runner.processes.share import Ended, Task
from mechstudy.study.phases.intervene import IntervenePhase
from tests.support.interventions_world import pairs, transcoders
from tests.support.thorough import few
from tests.support.tiny import tiny_model
from tests.support.toy_units import unit

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


@pytest.mark.parametrize("most", few([3, 1, 5]))
def test_interventions_run_in_parts_and_shams_stay_exactly_zero(monkeypatch, tmp_path, most):
    model, prompts = tiny_model("llama"), pairs(4)
    dictionaries = transcoders(model)
    variants = [
        Variant("ablation_zero", f"feature {n}", "", "effect", 0, lambda _, n=n: [SetFeature(0, n, 2)])
        for n in range(3)
    ] + [Variant("sham", "sham", "", "sham", 0, lambda _: [SetFeature(0, 1, 2, None)])]
    plan = Plan("b", (), {}, {}, (Suite("features", tuple(prompts), tuple(variants)),), (0,), ("subject",))
    whole = read_csv(run_interventions(model, dictionaries, plan, CONFIG, tmp_path / "whole", batch_tokens=60))
    run, tried = short_of_memory(model.forward, len, most)
    monkeypatch.setattr(model, "forward", run)
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
    run, tried = short_of_memory(model.forward, len, 2)  # a source and the clean row beside it
    monkeypatch.setattr(model, "forward", run)
    parts = read_csv(measure_edges(model, dictionaries, checks, CONFIG, tmp_path / "parts", batch_tokens=60))
    assert max(tried) == 3 and len(parts) == len(whole) == 4
    for a, b in zip(parts, whole, strict=True):
        assert float(a["frozen"]) == pytest.approx(float(b["frozen"]), abs=1e-12)
        assert float(a["total_live"]) == pytest.approx(float(b["total_live"]), abs=1e-12)
        assert float(a["direct_live"]) == pytest.approx(float(b["direct_live"]), abs=1e-12)


def test_activations_of_prompts_are_taken_fewer_at_a_time(monkeypatch):
    model, prompts = tiny_model("llama"), pairs(6)
    whole = NamedActivations(model, transcoders(model), prompts).means(2, "subject")
    tokens, sites = torch.tensor([p.clean_tokens for p in pairs(4, (7,))]), [Site("mlp_in", 1), Site("resid_post", 2)]
    expected = captured(model, tokens, sites)
    run, tried = short_of_memory(model.forward, len, 1)
    monkeypatch.setattr(model, "forward", run)
    torch.testing.assert_close(captured(model, tokens, sites), expected, rtol=1e-12, atol=1e-12)
    parts = NamedActivations(model, transcoders(model), prompts).means(2, "subject")
    assert max(tried) > 1
    torch.testing.assert_close(parts, whole, rtol=1e-12, atol=1e-12)


def test_interrupted_interventions_keep_the_batches_they_began_with(monkeypatch, tmp_path):
    """Samples are ordered by batches: a restart with smaller ones goes on with those of the first process."""
    out = SimpleNamespace(scratch=tmp_path, path=tmp_path, write_json=lambda *_: None)
    batches = []
    for name in ("feature_groups", "recurring_features", "build_plan", "summarise"):
        monkeypatch.setattr(interventions, name, lambda *_, **__: [])
    monkeypatch.setattr(interventions, "run_interventions", lambda *_, batch_tokens, **__: batches.append(batch_tokens))
    inputs = SimpleNamespace(
        model=SimpleNamespace(load=lambda *_, **__: None),
        dictionaries={},
        prompts=SimpleNamespace(pairs=lambda _: [], behaviour="b"),
        graphs=SimpleNamespace(aggregate=lambda: {"nodes": []}),
    )
    for tokens in (4096, 64):
        IntervenePhase().run(IntervenePhase.spec(n_edges=0), inputs, out, Runtime(batch_tokens=tokens))
    assert batches == [4096, 4096]


def test_workers_cut_batches_as_the_leader_does_after_a_restart(monkeypatch, tmp_path):
    shared = unit("capture[mine]", shared="digest")
    job = Job(shared, "0" * 64, {}, tmp_path, RunOptions())
    sent = []
    workers = SimpleNamespace(
        submit=sent.extend, shares=lambda: [Ended(1, "done")], stop=lambda: None, close=lambda: None
    )
    monkeypatch.setattr(leading, "LocalWorkers", lambda *_: workers)
    leader = Leader(job, 2, 1, "cpu", LeaderProgress(tmp_path, phase="capture", unit=shared.name), {}, tmp_path)
    leader.use_batch(1024)
    with leader.sharing():
        pass
    [task] = sent
    received = pickle.loads(pickle.dumps(task)), Task.from_json(task.as_json())
    assert [there.job.options.batch_tokens for there in received] == [1024, 1024]
