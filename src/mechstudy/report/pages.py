"""The static report of a study: a function per page gathers what it shows, draws its figures, renders its template."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

from altair.utils.schemapi import debug_mode

from mechstudy.circuits.graph_frames import BehaviourFrames, PromptFrames
from mechstudy.interventions.results import edges_of
from mechstudy.report import charts
from mechstudy.report.claims import Measured, claims
from mechstudy.report.data import ReportData, UnitFiles
from mechstudy.report.figures import LIGHT, bundle, chart_themes
from mechstudy.report.formatting import clip, plain, real, slug, title
from mechstudy.report.page_data import write_data
from mechstudy.report.pictures import INLINE, circuit_svg
from mechstudy.report.record_pages import compute_page, usage_page
from mechstudy.report.site import Site
from mechstudy.report.story_page import story_page
from mechstudy.report.verdict_page import verdict_of, verdict_page
from mechstudy.report.viewer import (
    AGGREGATE,
    Densities,
    Labels,
    aggregate_view,
    automatic_groups,
    feature_densities,
    feature_labels,
    prompt_view,
    with_asked,
    write_features,
)

N_EXAMPLES, N_WORST = 8, 10
Rows = list[dict[str, Any]]


def build_report(data: ReportData, out: Path) -> None:
    """Write the report: static pages that open from `file://` and make no network request.

    Args:
        data: the study's units; any artifact may be absent.
        out: folder to write index.html, data/, assets/ and figures/ into.

    Raises:
        MechstudyError: an artifact's file is broken.
    """
    out.mkdir(parents=True, exist_ok=True)
    with debug_mode(False):  # altair would check each chart against its schema, many times; the tests do
        _build(data, out)


def _build(data: ReportData, out: Path) -> None:
    site = Site(data, out)
    site.write_assets(bundle())
    write_data(out, "chart-theme", chart_themes())
    recorded = data.features.json("features.json")
    features = with_asked(recorded.get("features") or [], data.asked)
    labels = feature_labels(features)
    write_features(out, features)
    absent = data.why_no_circuit(data.features)
    site.render(
        "features",
        n=len(features),
        n_asked=sum(one["asked"] is not None for one in features),
        claims=recorded.get("labels"),
        absent=absent,
    )
    views = {}
    for behaviour in data.behaviours:
        examples = behaviour_page(site, behaviour)
        views[behaviour] = graph_page(site, behaviour, labels, feature_densities(features))
        interventions_page(site, behaviour)
        verdict_page(site, behaviour)
        story_page(site, behaviour, examples)
    dictionaries_page(site)
    compute_page(site)
    usage_page(site)
    overview_page(site, views, pipeline(data.units))


def pipeline(units: Sequence[UnitFiles]) -> list[dict[str, Any]]:
    """The pipeline strip: the units of each title, in the order of the first, with their state and time."""
    by_title: dict[str, list[UnitFiles]] = {}
    for unit in units:
        if label := unit.record.get("title"):
            by_title.setdefault(label, []).append(unit)
    return [_step(label, members) for label, members in by_title.items()]


def _step(label: str, units: Sequence[UnitFiles]) -> dict[str, Any]:
    done = sum(unit.done for unit in units)
    failed = any(unit.record.get("status") == "failed" for unit in units)
    return {
        "label": label,
        "n": len(units),
        "done": done,
        "state": "failed" if failed else "done" if done == len(units) else "part" if done else "none",
        "others": ", ".join(sorted({str(unit.record.get("status")) for unit in units if not unit.done})),
        "seconds": sum(unit.record.get("seconds") or 0 for unit in units),
        "first": slug(units[0].name),
    }


def behaviour_page(site: Site, behaviour: str) -> Rows:
    """Prompts and baseline of a behaviour; returns its examples of pairs."""
    key, baseline, prompts = slug(behaviour), site.data.baselines[behaviour], site.data.prompts[behaviour]
    summary = baseline.json("summary.json")
    scored = {split: rows for split in ("train", "test") if (rows := baseline.rows(f"{split}.csv"))}
    accuracy = charts.accuracy(summary.get("splits") or {}, (summary.get("gate") or {}).get("min_accuracy"))
    site.figures.add(f"baseline-accuracy-{key}", accuracy, "Accuracy per split", baseline)
    differences = charts.logit_differences(scored, baseline.metric)
    site.figures.add(f"baseline-logit-differences-{key}", differences, "Logit differences of all prompts", baseline)
    pairs = {split: rows for split in ("train", "test") if (rows := prompts.rows(f"{split}.jsonl"))}
    examples = _examples(pairs.get("train", []), prompts.json("tokens.json"))
    site.render(
        "behaviour",
        key,
        behaviour=behaviour,
        prompts=prompts,
        baseline=baseline,
        summary=summary,
        examples=examples,
        worst=_worst(scored, {str(p["id"]): p for p in chain(*pairs.values())}),
        n_pairs={split: len(rows) for split, rows in pairs.items()},
    )
    return examples


def _examples(pairs: Rows, strings: Mapping[str, str]) -> Rows:
    """Pairs of as many templates as possible, with the texts of their tokens and what differs between them."""
    by_template: dict[str, Rows] = {}
    for pair in pairs:
        by_template.setdefault(str(pair.get("template")), []).append(pair)
    in_turn = [pair for row in zip_longest(*by_template.values()) for pair in row if pair is not None]
    examples = []
    for pair in in_turn[:N_EXAMPLES]:
        clean, corrupted = pair["clean_tokens"], pair["corrupted_tokens"]
        examples.append(
            {
                **_with_all_answers(pair),
                "marks": {int(i): str(name) for name, i in (pair.get("positions") or {}).items()},
                "changed": {i for i, (a, b) in enumerate(zip(clean, corrupted, strict=False)) if a != b},
                "clean_strings": [strings[str(token)] for token in clean],
                "corrupted_strings": [strings[str(token)] for token in corrupted],
            }
        )
    return examples


def _with_all_answers(pair: Mapping[str, Any]) -> dict[str, Any]:
    """The pair with every right and every wrong answer in one text each."""
    several = pair.get("answer_sets")
    joined = {"answer": "|".join(several["right"]), "wrong_answer": "|".join(several["wrong"])} if several else {}
    return {**pair, **joined}


def _worst(scored: Mapping[str, Rows], pairs: Mapping[str, Any]) -> Rows:
    rows = [
        {**r, "split": split, "d": d, "pair": _with_all_answers(pairs.get(str(r.get("id"))) or {})}
        for split, rs in scored.items() for r in rs if (d := real(r.get("logit_difference"))) is not None
    ]  # fmt: skip
    return sorted(rows, key=lambda row: row["d"])[:N_WORST]


def dictionaries_page(site: Site) -> None:
    """All dictionaries: a row each, metrics over layers, training curves, densities."""
    units, figures = site.data.dictionaries, site.figures
    evaluations = {layer: e for layer, unit in units.items() if (e := unit.evaluation)}
    scalars = {layer: rows for layer, unit in units.items() if (rows := unit.rows("scalars.jsonl"))}
    for field, (label, domain) in charts.DICTIONARY_METRICS.items():
        drawn = charts.over_layers(evaluations, field, label, domain)
        figures.add(f"dictionaries-{field.replace('_', '-')}", drawn, title(label), *units.values())
    curves = charts.loss_curves(scalars)
    figures.add("dictionaries-training", curves, "Training: fraction of variance unexplained", *units.values())
    densities = charts.density_histograms(evaluations)
    variants = [(*key, unit.name, e) for key, unit in site.data.variants.items() if (e := unit.evaluation)]
    figures.add("dictionaries-density", densities, "Feature densities", *units.values())
    site.render(
        "dictionaries",
        units=units,
        evaluations=evaluations,
        credits=_credits(units),
        errors={layer: e for layer, e in evaluations.items() if e.get("fvu_per_row")},
        alike=_alike(evaluations.values()),
        variants=variants,
        controls=[
            (layer, unit, e, own, _beats(own, e))
            for layer, _, unit, e in variants
            if e.get("frozen") and (own := evaluations.get(layer))
        ],
    )


def _beats(trained: Mapping[str, Any], control: Mapping[str, Any]) -> bool:
    """Whether a trained dictionary explains more than a control with a frozen part, and recovers no less loss."""
    own, other = trained.get("ce_loss_recovered"), control.get("ce_loss_recovered")
    no_less = own is None or other is None or own >= other
    return bool(trained["r2"] > control["r2"] and no_less)


def _credits(units: Mapping[int, UnitFiles]) -> list[tuple[str, str, str]]:
    """Where published dictionaries are from: their layers, their address, and the model they were made for."""
    layers: dict[tuple[str, str], list[int]] = {}
    for layer, unit in units.items():
        if source := unit.json("source.json"):
            layers.setdefault((source["address"], source.get("made_for") or ""), []).append(layer)
    return [(_named(at), address, made_for) for (address, made_for), at in layers.items()]


def _named(layers: Sequence[int]) -> str:
    word = "Layer" if len(layers) == 1 else "Layers"
    return f"{word} {', '.join(map(str, layers))}"


def _alike(evaluations: Iterable[dict[str, Any]]) -> str:
    """What all dictionaries are, where they are the same but for the layer; else nothing."""
    kinds = {(e.get("kind"), e.get("activation"), *(str(e.get(f)).partition(".")[0] for f in ("site_in", "site_out")))
             for e in evaluations}  # fmt: skip
    if len(kinds) != 1:
        return ""
    kind, activation, site_in, site_out = kinds.pop()
    return f"{str(kind or '').replace('_', ' ')}, {activation}, {site_in} → {site_out}"


def graph_page(site: Site, behaviour: str, labels: Labels, densities: Densities) -> dict[str, Any] | None:
    """The viewer of a behaviour's graphs; returns the aggregated view for the overview's picture."""
    key, unit = slug(behaviour), site.data.graphs[behaviour]
    scores, aggregate = unit.json("scores.json"), unit.json("aggregate.json")
    per_prompt = scores.get("per_prompt") or []
    view, entries = None, []
    edits = site.data.edits

    def marked(graph: str) -> str:
        return " (edited)" if graph in edits else ""

    if aggregate.get("nodes"):
        aggregate = {**aggregate, "qParams": edits.get(behaviour)}
        checked = edges_of(site.data.interventions[behaviour].json("summary.json")).get("rows") or ()
        view = aggregate_view(
            aggregate,
            labels,
            checked,
            _mean_scores(scores),
            densities,
            automatic_groups(BehaviourFrames(aggregate, scores)),
        )
        name = f"graph-{key}-aggregate"
        write_data(site.out, name, view)
        entries.append(
            {
                "data": name,
                "slug": AGGREGATE,
                "label": f"All {view['n_prompts']} prompts, aggregated" + marked(behaviour),
            }
        )
        site.figures.write_svg(f"circuit-{key}", circuit_svg(view, boxes=True, theme=LIGHT))
    for row in per_prompt:
        if graph := unit.json(f"graphs/{row['slug']}.json"):
            graph = {**graph, "qParams": edits.get(str(row["slug"])) or graph.get("qParams")}
            name = f"graph-{key}-{slug(str(row['slug']))}"
            write_data(site.out, name, prompt_view(graph, labels, densities, automatic_groups(PromptFrames(graph))))
            prompt = clip(plain(str(row.get("prompt") or row["slug"])), 90)
            entries.append({"data": name, "slug": str(row["slug"]), "label": prompt + marked(str(row["slug"]))})
    write_data(site.out, f"graphs-{key}", {"behaviour": behaviour, "graphs": entries})
    drawn = charts.graph_scores(per_prompt)
    site.figures.add(f"graph-scores-{key}", drawn, "How much of each graph the features explain", unit)
    site.render(
        "graph",
        key,
        behaviour=behaviour,
        scores=scores,
        seconds=unit.json("timing.json").get("seconds_per_prompt") or {},
        picture=circuit_svg(view, boxes=True, theme=INLINE) if view else None,
        node_kinds=_node_kinds(aggregate, site.data.dictionaries),
        absent=None if entries else site.data.why_no_circuit(unit, behaviour),
        unit=unit.name,
        explains=aggregate.get("explains"),
    )
    return view


def _node_kinds(aggregate: Mapping[str, Any], units: Mapping[int, UnitFiles]) -> list[str]:
    """What the nodes of each layer are, a sentence per kind of layer."""
    if not aggregate:
        return []
    kinds: dict[str, list[int]] = {}
    for layer in aggregate.get("layers_with_dictionaries") or []:
        e = units[layer].evaluation if layer in units else {}
        site = str(e.get("site_out") or "").partition(".")[0]
        kind = str(e.get("kind") or "dictionary").replace("_", " ")
        kinds.setdefault(f"features of SAEs of {site}" if kind == "sae" else f"features of {kind}s", []).append(layer)
    neurons = list(aggregate.get("neuron_layers") or [])
    if neurons:
        kinds["neurons of the MLP; those that are not listed are drawn together, as errors"] = neurons
    lines = [f"{_named(layers)}: {kind}." for kind, layers in kinds.items()]
    n_without = int(aggregate.get("n_layers") or 0) - sum(map(len, kinds.values()))
    if n_without > 0:
        linear = aggregate.get("elsewhere") == "linear"
        what = "passes effects on as the linear map that it is at the prompt" if linear else "is an error node"
        lines.append(f"In the other {n_without} layers the MLP {what}.")
    return lines


def _mean_scores(scores: dict[str, Any]) -> dict[str, float]:
    """The aggregated graph's facts: means over its prompts, named so."""
    names = {"nodes": "mean nodes of a prompt's graph", "edges": "mean edges of a prompt's graph"}
    numbers = {k: v for k, v in scores.items() if isinstance(v, (int, float)) and k != "n_prompts"}
    return {names.get(k, k): round(v, 1) if k in names else v for k, v in numbers.items()}


_REPLACED = {
    "corrupted": "its activation on the corrupted prompt",
    "mean": "its mean over train prompts at the same named position",
    "zero": "zero",
}
_RANKED = {
    "corrupted": "set to its activation on the corrupted prompt",
    "mean": "set to its mean over train prompts at the same named position",
    "zero": "set to zero",
    "live_effect": "what it adds to the answer (activation x gradient of the unfrozen model)",
    "total_effect": "what it adds to the answer through the graph (attention frozen)",
}


def ranked_by(ranking: Mapping[str, Any] | None) -> str | None:
    """How groups were ranked, as a sentence; None for runs of versions that do not say."""
    if not ranking:
        return None
    order = "by size, whatever the sign" if ranking.get("by") == "|effect|" else "the answer's largest supporters first"
    replaced = _RANKED.get(str(ranking.get("replace_by")))
    if replaced is None:
        adds = _RANKED.get(str(ranking["rank_by"]), ranking["rank_by"])
        return f"Features are ranked on train prompts by {adds}, {order}."
    steps = ranking.get("steps")
    how = f"integrated gradients, {steps} steps" if steps else "first order"
    return f"Features are ranked on train prompts by the predicted change where one is {replaced} ({how}), {order}."


def interventions_page(site: Site, behaviour: str) -> None:
    """Effects against controls, groups, dose-response, patching, predicted against measured edges."""
    key, unit = slug(behaviour), site.data.interventions[behaviour]
    summary, of_behaviour = unit.json("summary.json"), claims(unit)
    tests = [(c.title, c.n, c.effect, c.control) for c in of_behaviour]
    groups: dict[str, list[Any]] = {}
    for g in summary.get("groups") or []:
        effects = (str(g.get("name")), g.get("n"), Measured.of(g), Measured.of(g, "control_effect"))
        groups.setdefault(str(g.get("kind")), []).append(effects)
    metric, ci_name = unit.metric, site.data.interval_name
    tested = edges_of(summary)
    for name, drawn, heading in (
        ("interventions", charts.forest(tests, metric, ci_name), "Effects against matched controls"),
        ("dose-response", charts.dose_response(summary, ci_name), "Dose-response"),
        ("patching", charts.patching(summary), "Where the information is"),
        *((name, charts.edges(tested, drawn, ci_name), text) for name, (text, drawn) in charts.EDGE_FIGURES.items()),
    ):
        site.figures.add(f"{name}-{key}", drawn, heading, unit)
    for kind, of_kind in groups.items():
        drawn = charts.forest(of_kind, metric, ci_name)
        site.figures.add(f"groups-{slug(kind)}-{key}", drawn, f"Groups: {title(kind).lower()}", unit)
    site.render(
        "interventions",
        key,
        behaviour=behaviour,
        summary=summary,
        claims=of_behaviour,
        kinds=list(groups),
        ranked=ranked_by(summary.get("ranking")),
        edges=tested,
        replaced=_REPLACED.get(str(tested.get("replaced_by"))),
        absent=None if summary else site.data.why_no_circuit(unit, behaviour),
        unit=unit.name,
    )


def overview_page(site: Site, views: Mapping[str, Any], phases: Sequence[dict[str, Any]]) -> None:
    """The overview: the claims in plain words, the pipeline, the circuits, how far to trust it."""
    data, behaviours = site.data, []
    for behaviour in data.behaviours:
        view = views.get(behaviour)
        behaviours.append(
            {
                "name": behaviour,
                "key": slug(behaviour),
                "claims": claims(data.interventions[behaviour]),
                "verdict": verdict_of(site, behaviour),
                "picture": circuit_svg(view, boxes=False, theme=INLINE, max_nodes=40, max_edges=70) if view else None,
            }
        )
    r2 = {layer: e["r2"] for layer, unit in data.dictionaries.items() if (e := unit.evaluation).get("r2") is not None}
    site.render(
        "index",
        behaviours=behaviours,
        phases=phases,
        r2=r2,
        worst=min(r2, key=r2.__getitem__, default=None),
        n_dictionaries=sum(bool(unit.evaluation) for unit in data.dictionaries.values()),
        n_variants=sum(bool(unit.evaluation) for unit in data.variants.values()),
        n_graphs=sum(len(unit.json("scores.json").get("per_prompt") or []) for unit in data.graphs.values()),
    )
