"""A finished run, read from its artifacts: frames, graphs, prompts and dictionaries."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar, overload

import polars as pl

from mechstudy.api.graphs import BehaviourGraph, PromptGraph
from mechstudy.core.errors import MechstudyError, nearest
from mechstudy.core.yaml_source import read_yaml
from mechstudy.dictionaries.evaluation import loss_recovered
from mechstudy.features.asked_labels import ASKED, AskedLabel, name_of, page_id, read_asked
from mechstudy.interventions.results import EDGES_MEASURED, edges_of
from mechstudy.report.viewer import auto_label
from mechstudy.store.artifacts import Artifact
from mechstudy.study import finished as artifacts
from mechstudy.study.run_folder import RunFolder

if TYPE_CHECKING:
    from mechstudy.behaviours.prompts import Prompts
    from mechstudy.dictionaries.loading import DictionarySet

T = TypeVar("T")

# Of tables that may be empty.
_COLUMNS = {
    "units": "unit phase seconds finished peak_memory_gb size_mb id folder",
    "baseline": "behaviour split n accuracy accuracy_low accuracy_high mean_logit_difference passed",
    "evaluations": "layer kind d_sae l0 fvu ce_loss_recovered dead_share",
    "features": "feature layer label rule claimed score score_shuffled asked_label asked_score asked_shuffled "
    "frequency mean_activation max_activation promotes suppresses examples behaviours",
    "effects": "behaviour kind group n effect effect_low effect_high control_effect "
    "difference difference_low difference_high p p_adjusted p_difference_adjusted",
    "edges": "behaviour kind source target n removed predicted predicted_qk frozen frozen_low frozen_high "
    "qk qk_low qk_high direct_live direct_live_low direct_live_high total_live total_live_low total_live_high",
    "patching": "behaviour site layer position effect ci_low ci_high median mean_gap kl n",
    "dose_response": "behaviour direction alpha effect ci_low ci_high n kl",
    "verdicts": "behaviour outcome criterion state value value_low value_high threshold n n_clusters question",
}
_WORDS = ("unit", "phase", "finished", "id", "folder", "behaviour", "split", "kind", "group", "feature", "label",
          "asked_label", "source", "target", "site", "position", "direction", "outcome", "criterion", "state",
          "question")  # fmt: skip


class Run:
    """What a run has finished. Nothing is computed and nothing written; every table is a polars frame.

    ``run.graphs["subject_verb_agreement"]``, ``run.dictionaries[13]``, ``run.prompts["subject_verb_agreement"]``;
    ``run.baseline``, ``run.evaluations``, ``run.features``, ``run.effects``, ``run.edges``, ``run.patching``,
    ``run.verdicts``, ``run.units``. What the run has not made is an empty frame or mapping.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def __repr__(self) -> str:
        phases = self.units["phase"].unique(maintain_order=True).to_list() if len(self.units) else []
        return f"Run {self.path}: {len(self.units)} units of {', '.join(phases)}"

    # ------------------------------------------------------------------ the run

    @cached_property
    def artifacts(self) -> dict[str, Artifact]:
        """The newest artifact of every unit, by the unit's name."""
        return artifacts.latest(self.path)

    @cached_property
    def units(self) -> pl.DataFrame:
        """Every finished unit: unit, phase, seconds, finished, peak_memory_gb, size_mb, id, folder."""
        rows = [
            {
                "unit": name,
                "phase": artifact.phase,
                "seconds": artifact.manifest.get("seconds"),
                "finished": artifact.manifest["finished"],
                "peak_memory_gb": (artifact.manifest.get("peak_rss_bytes") or 0) / 1e9,
                "size_mb": sum(entry["size"] for entry in artifact.manifest["files"].values()) / 1e6,
                "id": artifact.id[:12],
                "folder": artifact.name,
            }
            for name, artifact in self.artifacts.items()
        ]
        return _frame(rows, _COLUMNS["units"]).sort("finished")

    @cached_property
    def study(self) -> dict[str, Any]:
        """The study file that the run was made with, as a plain dict."""
        data: dict[str, Any] = json.loads(json.dumps(read_yaml(self.path / "study.yaml", ()).data, default=str))
        return data

    @cached_property
    def model(self) -> dict[str, Any]:
        """The model: name, source, family, n_layers, d_model and more; empty where it was not checked yet."""
        return next((dict(one.read_json("model.json")) for one in self._of("model").values()), {})

    # ------------------------------------------------------------ by behaviour

    @cached_property
    def prompts(self) -> Named[Prompts]:
        """Prompt pairs by behaviour, those for training first."""

        def load(name: str, artifact: Artifact) -> Prompts:
            from mechstudy.behaviours.prompts import Prompts  # torch
            from mechstudy.behaviours.schema import SPLITS, from_jsonl

            return Prompts([pair for split in SPLITS for pair in from_jsonl(artifact.file(f"{split}.jsonl"))], name)

        return Named("behaviour", self._of("prompts"), load)

    @cached_property
    def graphs(self) -> Named[BehaviourGraph]:
        """The graph of each behaviour; its ``prompts`` are those of single prompts."""

        def load(name: str, artifact: Artifact) -> BehaviourGraph:
            scores = artifact.read_json("scores.json")
            files = [f"graphs/{row['slug']}.json" for row in scores["per_prompt"]]
            checked = (self._summary(name).get("edges") or {}).get("rows") or []
            aggregate, pages = artifact.read_json("aggregate.json"), self.feature_pages
            bases = dict.fromkeys(aggregate.get("neuron_layers") or (), "neurons")
            bases |= artifacts.dictionary_checksums(self.artifacts, artifact)
            return BehaviourGraph(
                aggregate, scores, _PromptGraphs(artifact, files, pages, bases), pages, checked, bases
            )

        return Named("behaviour", self._of("graphs"), load)

    @cached_property
    def edits(self) -> dict[str, dict[str, Any]]:
        """What readers made of graphs (`mechstudy report --edits`), by behaviour or by the name of a prompt's graph.

        `edited` of that graph takes it: ``run.graphs[name].edited(run.edits[name])``.
        """
        return RunFolder(self.path).read_edits()

    @cached_property
    def samples(self) -> Named[pl.DataFrame]:
        """Every single intervention of a behaviour, a row each; ``value`` is the change of the logit difference."""
        return Named("behaviour", self._of("interventions"), lambda _, made: _csv(made.file("results.csv")))

    # -------------------------------------------------------------------- tables

    @cached_property
    def baseline(self) -> pl.DataFrame:
        """How the model does: behaviour, split, n, accuracy, its interval, mean_logit_difference, its interval, ..."""
        named = {"accuracy_ci95": "accuracy", "ci95": "logit_difference"}
        rows = [
            {"behaviour": behaviour, "split": split, **_flat(summary, named)}
            for behaviour, artifact in self._of("baselines").items()
            for split, summary in artifact.read_json("summary.json")["splits"].items()
        ]
        return _frame(rows, _COLUMNS["baseline"])

    @cached_property
    def evaluations(self) -> pl.DataFrame:
        """How good each dictionary is on held-out rows: layer, kind, l0, fvu, ce_loss_recovered, dead_share, ..."""
        rows = []
        for layer, artifact in self._of("dictionaries").items():
            scores = loss_recovered.checked(artifact.read_json("evaluation.json"))
            rows.append({"layer": int(layer), **{k: v for k, v in scores.items() if not isinstance(v, list | dict)}})
        return _frame(rows, _COLUMNS["evaluations"]).sort("layer")

    @cached_property
    def features(self) -> pl.DataFrame:
        """The features in graphs, with the text they fire on.

        Columns: feature (``13/1741``), layer, label, rule (the best one), claimed (whether other documents bear it
        out; the label has it then), score and score_shuffled (of the best rule, and of another feature's; see
        `Label`), asked_label, asked_score and asked_shuffled (of `asked_labels`), frequency, mean_activation,
        max_activation, promotes and suppresses (tokens, the strongest first), examples (text around the «token» it
        fires on most), behaviours.
        """
        rows = [
            {
                "feature": f"{page['layer']}/{page['feature']}",
                "layer": page["layer"],
                "label": auto_label(page),
                **_of_rule(page),
                **_of_asked(self.asked_labels.get(name_of(page))),
                "frequency": page["frequency"],
                "mean_activation": page["mean_activation"],
                "max_activation": page["max_activation"],
                "promotes": [logit["token"] for logit in page.get("top_logits") or []],
                "suppresses": [logit["token"] for logit in page.get("bottom_logits") or []],
                "examples": [_marked(example) for example in page.get("examples") or []],
                "behaviours": sorted(page.get("graphs") or {}),
            }
            for page in self.feature_pages
        ]
        return _frame(rows, _COLUMNS["features"])

    @cached_property
    def feature_pages(self) -> Sequence[Mapping[str, Any]]:
        """What the run recorded of each feature of its graphs, as features.json has it."""
        return next((one.read_json("features.json")["features"] for one in self._of("features").values()), ())

    @cached_property
    def asked_labels(self) -> Mapping[str, AskedLabel]:
        """Labels that `ask_labels` got from an endpoint, by feature; those of features recorded since are left out."""
        pages = {name_of(page): page for page in self.feature_pages}
        asked = read_asked(self.path / ASKED)
        return {name: one for name, one in asked.items() if name in pages and one.page == page_id(pages[name])}

    @cached_property
    def effects(self) -> pl.DataFrame:
        """Effects of interventions on groups of features, with intervals, matched controls and p-values.

        A row for each behaviour, kind and group: behaviour, kind, group, n, effect (change of the logit difference;
        of steering its slope), effect_low, effect_high, control_effect, ..., difference, ..., p, p_adjusted (over all
        tests of the behaviour), members.
        """
        named = {"ci95": "effect", "control_ci95": "control", "difference_ci95": "difference"}
        rows = []
        for behaviour in self._of("interventions"):
            for entry in self._summary(behaviour).get("groups") or []:
                flat = _flat({k: v for k, v in entry.items() if k not in ("kind", "name", "members")}, named)
                members = [f"{m['layer']}/{m['feature']}@{m['position']}" for m in entry["members"]]
                rows.append({"behaviour": behaviour, "kind": entry["kind"], "group": entry["name"], **flat,
                             "members": members})  # fmt: skip
        return _frame(rows, _COLUMNS["effects"])

    @cached_property
    def edges(self) -> pl.DataFrame:
        """The strongest edges of both kinds (``value``, ``qk``), predicted by the graph and measured.

        ``frozen`` and ``predicted`` are of the value edge, ``qk`` and ``predicted_qk`` of the edge through attention
        patterns between the same two nodes, ``direct_live`` the whole direct effect in the live model, ``total_live``
        the effect where other nodes respond too. Every number is the change that goes away with ``removed``, the share
        of the source's activation that is taken away.
        """
        named = {f"{name}_ci95": name for name in EDGES_MEASURED}
        rows = [
            {"behaviour": behaviour, **_flat(row, named)}
            for behaviour in self._of("interventions")
            for row in edges_of(self._summary(behaviour)).get("rows") or []
        ]
        return _frame(rows, _COLUMNS["edges"])

    @cached_property
    def patching(self) -> pl.DataFrame:
        """For each layer and position, the share of the clean-corrupted gap that patching there removes."""
        return self._csv("interventions", "patching.csv")

    @cached_property
    def dose_response(self) -> pl.DataFrame:
        """Steering: the effect of each multiple ``alpha`` of a direction."""
        return self._csv("interventions", "dose_response.csv")

    @cached_property
    def verdicts(self) -> pl.DataFrame:
        """What each behaviour's circuit was asked, and what was measured.

        A row for each behaviour and criterion: behaviour, outcome, criterion, state, value, value_low, value_high,
        threshold, at_most, n, n_clusters, question.
        """
        rows = []
        for behaviour, artifact in self._of("verdicts").items():
            record = artifact.read_json("verdict.json")
            for c in record["criteria"]:
                facts = {k: v for k, v in c.items() if k not in ("name", "missing", "ci_missing")}
                about = {"behaviour": behaviour, "outcome": record["outcome"], "criterion": c["name"]}
                rows.append(about | _flat(facts, {"ci": "value"}))
        return _frame(rows, _COLUMNS["verdicts"])

    # -------------------------------------------------------------- dictionaries

    @cached_property
    def dictionaries(self) -> DictionarySet:
        """The dictionaries by layer, trained or published, each read when it is first used."""
        from mechstudy.dictionaries.loading import DictionarySet  # torch

        return DictionarySet(artifacts.dictionary_places(self.artifacts))

    # ------------------------------------------------------------------ internals

    def _of(self, field: str) -> dict[str, Artifact]:
        return artifacts.of(self.artifacts, field)

    def _summary(self, behaviour: str) -> Mapping[str, Any]:
        made = self._of("interventions").get(behaviour)
        return made.read_json("summary.json") if made else {}

    def _csv(self, field: str, name: str) -> pl.DataFrame:
        parts = [
            _csv(artifact.file(name)).select(pl.lit(behaviour).alias("behaviour"), pl.all())
            for behaviour, artifact in self._of(field).items()
            if name in artifact.manifest["files"]
        ]
        return pl.concat(parts, how="vertical_relaxed") if parts else _frame([], _COLUMNS[name.removesuffix(".csv")])


class Named(Mapping[str, T], Generic[T]):
    """Things by name, each read when it is first used; a wrong name's error says which there are."""

    def __init__(self, what: str, by_name: Mapping[str, Artifact], load: Callable[[str, Artifact], T]) -> None:
        self._what, self._artifacts = what, dict(by_name)
        self._load = cache(lambda name: load(name, self._artifacts[name]))

    def __getitem__(self, name: str) -> T:
        if name not in self._artifacts:
            guess = nearest(str(name), self._artifacts)
            raise MissingName(
                f"there is no {self._what} {name!r}",
                facts={f"{self._what}s": ", ".join(self._artifacts) or "none"},
                fix=f"did you mean {guess!r}?" if guess else None,
            )
        return self._load(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._artifacts)

    def __len__(self) -> int:
        return len(self._artifacts)

    def __repr__(self) -> str:
        return f"{len(self)} {self._what}s: {', '.join(self._artifacts)}"


class MissingName(MechstudyError, KeyError):
    """Nothing of this name; also a KeyError, as a Mapping promises."""


class _PromptGraphs(Sequence[PromptGraph]):
    """The graphs of a behaviour's prompts, each read when it is first used."""

    def __init__(
        self,
        artifact: Artifact,
        files: Sequence[str],
        pages: Sequence[Mapping[str, Any]],
        bases: Mapping[int, str],
    ) -> None:
        self._artifact, self._files, self._pages, self._bases = artifact, list(files), pages, bases
        self._loaded: dict[str, PromptGraph] = {}

    @overload
    def __getitem__(self, index: int) -> PromptGraph: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[PromptGraph]: ...
    def __getitem__(self, index: int | slice) -> PromptGraph | Sequence[PromptGraph]:
        if isinstance(index, slice):
            return [self._graph(file) for file in self._files[index]]
        return self._graph(self._files[index])

    def __len__(self) -> int:
        return len(self._files)

    def __repr__(self) -> str:
        return f"{len(self)} graphs of prompts"

    def _graph(self, file: str) -> PromptGraph:
        if file not in self._loaded:
            self._loaded[file] = PromptGraph(self._artifact.read_json(file), self._pages, self._bases)
        return self._loaded[file]


def open_run(folder: str | Path) -> Run:
    """Open the folder of a run, finished or not, to read what it has made.

        run = ms.open_run("runs/demo")
        run.graphs["subject_verb_agreement"]
        run.effects

    Raises:
        MechstudyError: the folder is not a run's; the error names runs nearby.
    """
    path = Path(folder).expanduser()
    artifacts.check_run(path)
    return Run(path)


def _frame(rows: Sequence[Mapping[str, Any]], columns: str) -> pl.DataFrame:
    """The rows as a frame; without any, an empty frame of these columns."""
    if rows:
        return pl.DataFrame(rows, infer_schema_length=None)
    return pl.DataFrame(schema={name: pl.String if name in _WORDS else pl.Float64 for name in columns.split()})


def _csv(file: Path) -> pl.DataFrame:
    return pl.read_csv(file, infer_schema_length=None)


def _of_rule(page: Mapping[str, Any]) -> dict[str, Any]:
    rule = page.get("label") or {}
    return {
        "rule": rule.get("rule"),
        "claimed": rule.get("claimed"),
        "score": rule.get("score"),
        "score_shuffled": rule.get("shuffled"),
    }


def _of_asked(asked: AskedLabel | None) -> dict[str, Any]:
    return {
        "asked_label": asked and asked.label,
        "asked_score": asked and asked.score,
        "asked_shuffled": asked and asked.shuffled,
    }


def _flat(entry: Mapping[str, Any], intervals: Mapping[str, str]) -> dict[str, Any]:
    """The entry with each interval (field -> name) as two numbers, ``<name>_low`` and ``<name>_high``."""
    flat: dict[str, Any] = {}
    for field, value in entry.items():
        if field in intervals:
            flat[f"{intervals[field]}_low"], flat[f"{intervals[field]}_high"] = value or (None, None)
        else:
            flat[field] = value
    return flat


def _marked(example: Mapping[str, Any], around: int = 8) -> str:
    tokens, peak = list(map(str, example["tokens"])), int(example["peak"])
    before, after = _joined(tokens[max(0, peak - around) : peak]), _joined(tokens[peak + 1 : peak + 1 + around])
    return f"{before}«{tokens[peak]}»{after}" if 0 <= peak < len(tokens) else _joined(tokens)


def _joined(tokens: Iterable[str]) -> str:
    return "".join(tokens).replace("\n", "↵")
