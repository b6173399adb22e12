"""One function per page: gather what it shows, draw its figures, render its template."""

# ruff: noqa: RUF001 - minus signs and Greek letters are what the captions show

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from mechstudy.report import charts, charts_interventions
from mechstudy.report.circuit_picture import INLINE, circuit_svg
from mechstudy.report.claims import claims
from mechstudy.report.data import ReportData
from mechstudy.report.feature_data import Labels
from mechstudy.report.figures import Figure, Figures, write_data
from mechstudy.report.formatting import clip, number, plain, real, slug, title
from mechstudy.report.graphs import aggregate_view, prompt_view
from mechstudy.report.site import Site
from mechstudy.report.strips import with_strips
from mechstudy.report.style import LIGHT
from mechstudy.report.trust import trust_rows

N_EXAMPLES, N_WORST = 8, 10


def behaviour_page(data: ReportData, site: Site, figures: Figures, behaviour: str) -> None:
    """Prompts and baseline of a behaviour."""
    key, baseline, prompts = slug(behaviour), data.baselines[behaviour], data.prompts[behaviour]
    summary = baseline.json("summary.json")
    splits = {s: rows for s in ("train", "test") if (rows := baseline.rows(f"{s}.csv"))}
    drawn = [
        figures.add(
            f"baseline-accuracy-{key}",
            charts.accuracy(summary.get("splits") or {}, (summary.get("gate") or {}).get("min_accuracy")),
            "Accuracy per split",
            "Share of prompts where the answer's first token beats the wrong one, with its 95% CI. "
            "Dashed: the gate a behaviour must pass to be studied.",
            [baseline],
        ),
        figures.add(
            f"baseline-logit-differences-{key}",
            charts.logit_differences(splits),
            "Logit differences of all prompts",
            "Left of zero the model prefers the wrong answer.",
            [baseline],
        ),
    ]
    pairs = {s: prompts.rows(f"{s}.jsonl") for s in ("train", "test")}
    site.render(
        "behaviour.html.j2",
        f"behaviour-{key}.html",
        behaviour=behaviour,
        prompts=prompts.json("summary.json"),
        summary=summary,
        figures=drawn,
        examples=_examples(pairs["train"], _token_strings(data, behaviour, pairs["train"] + pairs["test"])),
        worst=_worst(splits, {str(p["id"]): p for ps in pairs.values() for p in ps}),
        n_pairs={s: len(ps) for s, ps in pairs.items() if ps},
        absent=[unit.why_absent for unit in (prompts, baseline) if unit.folder is None],
        units=(prompts.name, baseline.name),
    )


def _examples(pairs: list[dict[str, Any]], strings: dict[int, str]) -> list[dict[str, Any]]:
    """Pairs to show: those whose tokens all have a text, where there are any."""
    whole = [p for p in pairs if _strings([*p["clean_tokens"], *p["corrupted_tokens"]], strings)]
    whole = whole or [p for p in pairs if _strings(p["clean_tokens"], strings)]
    return [_pair(p, strings) for p in _spread(whole or pairs, N_EXAMPLES)]


def _spread(pairs: list[dict[str, Any]], n: int) -> list[dict[str, Any]]:
    """Examples of as many templates as possible."""
    by_template: dict[str, list[dict[str, Any]]] = {}
    for pair in pairs:
        by_template.setdefault(str(pair.get("template")), []).append(pair)
    lists = list(by_template.values())
    return [ps[i] for i in range(n) for ps in lists if i < len(ps)][:n]


def _token_strings(data: ReportData, behaviour: str, pairs: list[dict[str, Any]]) -> dict[int, str]:
    """Token id -> text, from the prompts' tokens.json, else from the tokens that graphs show."""
    table = data.prompts[behaviour].json("tokens.json")
    if table:
        return {int(i): str(t) for i, t in table.items()}
    graphs = data.graphs[behaviour]
    ids: dict[str, list[int]] = {str(p["id"]): p["clean_tokens"] for p in pairs}
    strings: dict[int, str] = {}
    for row in graphs.json("scores.json").get("per_prompt") or []:
        metadata = graphs.json(f"graphs/{row['slug']}.json").get("metadata") or {}
        tokens, texts = ids.get(str(row.get("prompt_id"))) or [], metadata.get("prompt_tokens") or []
        if len(tokens) == len(texts):
            strings.update(zip(tokens, texts, strict=True))
    return strings


def _pair(pair: dict[str, Any], strings: dict[int, str]) -> dict[str, Any]:
    clean, corrupted = pair["clean_tokens"], pair["corrupted_tokens"]
    marks = {int(i): str(name) for name, i in (pair.get("positions") or {}).items()}
    changed = {i for i, (a, b) in enumerate(zip(clean, corrupted, strict=False)) if a != b}
    return {
        **pair,
        "marks": marks,
        "changed": changed,
        "clean_strings": _strings(clean, strings),
        "corrupted_strings": _strings(corrupted, strings),
    }


def _strings(tokens: list[int], strings: dict[int, str]) -> list[str] | None:
    """The tokens' texts; None where one is missing."""
    return [strings[t] for t in tokens] if all(t in strings for t in tokens) else None


def _worst(splits: dict[str, list[dict[str, Any]]], by_id: dict[str, Any]) -> list[dict[str, Any]]:
    rows = [
        {**r, "split": split, "d": d, "pair": by_id.get(str(r.get("id")))}
        for split, rs in splits.items() for r in rs if (d := real(r.get("logit_difference"))) is not None
    ]  # fmt: skip
    return sorted(rows, key=lambda r: r["d"])[:N_WORST]


def dictionaries_page(data: ReportData, site: Site, figures: Figures) -> None:
    """All dictionaries: a row each, metrics over layers, training curves, densities."""
    units = data.dictionaries
    evaluations = {layer: e for layer, unit in units.items() if (e := unit.evaluation)}
    scalars = {layer: rows for layer, unit in units.items() if (rows := unit.rows("scalars.jsonl"))}
    metrics = [
        figures.add(
            f"dictionaries-{m.field.replace('_', '-')}",
            charts.over_layers(evaluations, m),
            title(m.label),
            m.caption,
            units.values(),
        )
        for m in charts.DICTIONARY_METRICS
    ]
    curves = [
        figures.add(
            "dictionaries-training",
            charts.loss_curves(scalars),
            "Training: fraction of variance unexplained",
            "One line per layer; lower is better. A curve still falling at the end is undertrained.",
            units.values(),
        ),
        figures.add(
            "dictionaries-density",
            charts.density_histograms(evaluations),
            "Feature densities",
            "A hump far right is dense features, seldom interpretable; far left, features that hardly fire.",
            units.values(),
        ),
    ]
    site.render(
        "dictionaries.html.j2",
        "dictionaries.html",
        units={layer: unit.name for layer, unit in units.items()},
        evaluations=evaluations,
        errors={layer: e for layer, e in evaluations.items() if e.get("fvu_per_row")},
        alike=_alike(evaluations.values()),
        metrics=metrics,
        curves=curves,
        variants=[(*key, unit.name, e) for key, unit in data.variants.items() if (e := unit.evaluation)],
        reasons={layer: unit.why_absent for layer, unit in units.items() if layer not in evaluations},
    )


def _alike(evaluations: Iterable[dict[str, Any]]) -> str:
    """What all dictionaries are, where they are the same but for the layer; else nothing."""
    kinds = {(e.get("kind"), e.get("activation"), *(str(e.get(f)).partition(".")[0] for f in ("site_in", "site_out")))
             for e in evaluations}  # fmt: skip
    if len(kinds) != 1:
        return ""
    kind, activation, site_in, site_out = kinds.pop()
    return f"{str(kind or '').replace('_', ' ')}, {activation}, {site_in} → {site_out}"


def graph_page(data: ReportData, site: Site, figures: Figures, behaviour: str, labels: Labels) -> dict[str, Any] | None:
    """The viewer of a behaviour's graphs; returns the aggregated view for the overview's picture."""
    key, unit = slug(behaviour), data.graphs[behaviour]
    scores, aggregate = unit.json("scores.json"), unit.json("aggregate.json")
    per_prompt = scores.get("per_prompt") or []
    checked = (data.interventions[behaviour].json("summary.json").get("edges") or {}).get("rows") or []
    view, entries = None, []
    if aggregate.get("nodes"):
        view = aggregate_view(aggregate, labels, checked)
        if not view["scores"]:
            view["scores"] = _mean_scores(scores)
        name = f"graph-{key}-aggregate"
        write_data(site.out, name, view)
        entries.append({"data": name, "slug": "aggregate", "label": f"All {view['n_prompts']} prompts, aggregated"})
        figures.write_svg(f"circuit-{key}", circuit_svg(view, boxes=True, theme=LIGHT))
    for row in per_prompt:
        graph = unit.json(f"graphs/{row['slug']}.json")
        if graph:
            name = f"graph-{key}-{slug(str(row['slug']))}"
            write_data(site.out, name, prompt_view(graph, labels))
            prompt = clip(plain(str(row.get("prompt") or row["slug"])), 90)
            entries.append({"data": name, "slug": str(row["slug"]), "label": prompt})
    write_data(site.out, f"graphs-{key}", {"behaviour": behaviour, "graphs": entries})
    figure = figures.add(
        f"graph-scores-{key}",
        charts.graph_scores(per_prompt),
        "How much of each graph the features explain",
        "One tick per prompt, diamond: median. In the pruned graphs, what was pruned counts as error.",
        [unit],
    )
    site.render(
        "graph.html.j2",
        f"graph-{key}.html",
        behaviour=behaviour,
        key=key,
        entries=entries,
        scores=scores,
        seconds=unit.json("timing.json").get("seconds_per_prompt") or {},
        figure=figure,
        picture=circuit_svg(view, boxes=True, theme=INLINE) if view else None,
        absent=None if entries else data.why_no_circuit(unit, behaviour),
        unit=unit.name,
    )
    return view


def _mean_scores(scores: dict[str, Any]) -> dict[str, float]:
    """The aggregated graph's facts: means over its prompts, named so."""
    names = {"nodes": "mean nodes of a prompt's graph", "edges": "mean edges of a prompt's graph"}
    numbers = {k: v for k, v in scores.items() if isinstance(v, (int, float)) and k != "n_prompts"}
    return {names.get(k, k): round(v, 1) if k in names else v for k, v in numbers.items()}


def interventions_page(data: ReportData, site: Site, figures: Figures, behaviour: str) -> None:
    """Effects against controls, groups, dose-response, patching, predicted against measured edges."""
    key, unit = slug(behaviour), data.interventions[behaviour]
    summary = unit.json("summary.json")
    edges = summary.get("edges") or {}
    behaviour_claims = claims(unit)
    drawn: dict[str, Figure | None] = {
        "forest": figures.add(
            f"interventions-{key}",
            charts_interventions.forest(behaviour_claims),
            "Effects against matched controls",
            "Mean paired change per test prompt; bars are 95% cluster-bootstrap CIs. Controls are features "
            "matched on layer, position and activation. A claim needs the bar away from zero and from its control.",
            [unit],
        ),
        "dose": figures.add(
            f"dose-response-{key}",
            charts_interventions.dose_response(summary),
            "Dose-response",
            "Steering by α times each direction; bands are 95% CIs. A causal direction changes sign with α and "
            "beats random directions of the same norm; the difference of means is the baseline to beat.",
            [unit],
        ),
        "patching": figures.add(
            f"patching-{key}",
            charts_interventions.patching(summary),
            "Where the information is",
            "The corrupted prompt's activation of one layer at one position, written into the clean prompt: "
            "share of the metric's gap between the two that this removes "
            f"(n = {(summary.get('patching') or {}).get('n', 'n/a')}).",
            [unit],
        ),
    }
    for measured, where, meaning in (
        ("frozen", "attention and norms frozen",
         "On the dashed line prediction and measurement agree; off it, the graph itself is wrong."),
        ("live", "live model", "The distance to the frozen panel is what the linear picture leaves out."),
    ):  # fmt: skip
        drawn[f"edges_{measured}"] = figures.add(
            f"edges-{measured}-{key}",
            charts_interventions.edges(summary, measured),
            f"Edges: predicted and measured, {where}",
            f"Spearman {number(edges.get(f'spearman_{measured}'))} over {edges.get('n', 0)} edges. {meaning}",
            [unit],
        )
    metric = str(summary.get("metric") or "logit difference")
    kinds = dict.fromkeys(str(g.get("kind")) for g in summary.get("groups") or [])
    groups = [
        figures.add(
            f"groups-{slug(kind)}-{key}",
            charts_interventions.groups_forest([g for g in summary["groups"] if g.get("kind") == kind], metric),
            f"Groups: {title(kind).lower()}",
            "Each group is intervened on by itself; p-values in the table are adjusted over all tests.",
            [unit],
        )
        for kind in kinds
    ]
    site.render(
        "interventions.html.j2",
        f"interventions-{key}.html",
        behaviour=behaviour,
        key=key,
        summary=summary,
        claims=with_strips(behaviour_claims),
        figures=drawn,
        groups=groups,
        edges=edges,
        absent=None if summary else data.why_no_circuit(unit, behaviour),
        unit=unit.name,
    )


def overview_page(data: ReportData, site: Site, views: dict[str, Any], phases: list[dict[str, Any]]) -> None:
    """The overview: the claims in plain words, the pipeline, the circuits, how far to trust it."""
    behaviours = []
    for behaviour in data.behaviours:
        view, interventions = views.get(behaviour), data.interventions[behaviour]
        behaviour_claims = claims(interventions)
        behaviours.append(
            {
                "name": behaviour,
                "key": slug(behaviour),
                "baseline": data.baselines[behaviour].name,
                "interventions": interventions.name,
                "description": data.prompts[behaviour].json("summary.json").get("description") or "",
                "splits": data.baselines[behaviour].json("summary.json").get("splits") or {},
                "claims": with_strips(behaviour_claims),
                "held": sum(c.verdict in ("supported", "caveat") for c in behaviour_claims),
                "picture": circuit_svg(view, boxes=False, theme=INLINE, max_nodes=40, max_edges=70) if view else None,
                "why": None if behaviour_claims else data.why_no_circuit(interventions, behaviour),
                "trust": trust_rows(data, behaviour),
            }
        )
    site.render(
        "index.html.j2",
        "index.html",
        behaviours=behaviours,
        phases=phases,
        unfinished=data.unfinished(),
        n_dictionaries=sum(bool(unit.evaluation) for unit in data.dictionaries.values()),
        n_variants=sum(bool(unit.evaluation) for unit in data.variants.values()),
        n_graphs=sum(len(unit.json("scores.json").get("per_prompt") or []) for unit in data.graphs.values()),
        seconds=data.seconds,
    )
