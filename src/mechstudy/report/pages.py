"""One function per page: gather what it shows, draw its figures, render its template."""

# ruff: noqa: RUF001 - minus signs and Greek letters are what the captions show

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from . import charts, charts_interventions, formatting
from .circuit_picture import INLINE, circuit_svg
from .claims import VERDICT_WORDS, Claim, claims
from .feature_data import Labels
from .figures import Figure, Figures, write_data
from .graphs import aggregate_view, prompt_view
from .site import Site
from .source import Source, real
from .strips import interval_strip, shared_domain
from .style import LIGHT, themed
from .trust import trust_rows

N_EXAMPLES, N_WORST = 8, 10


def behaviour_page(source: Source, site: Site, figures: Figures, behaviour: str) -> None:
    """Prompts and baseline of a behaviour."""
    key, unit, prompts_unit = formatting.slug(behaviour), f"baseline[{behaviour}]", f"prompts[{behaviour}]"
    summary = source.json(unit, "summary.json") or {}
    splits = {s: source.rows(unit, f"{s}.csv") for s in ("train", "test") if source.path(unit, f"{s}.csv")}
    gate = (summary.get("gate") or {}).get("min_accuracy")
    drawn = [
        figures.add(
            f"baseline-accuracy-{key}",
            charts.accuracy(summary.get("splits") or {}, gate),
            title="Accuracy per split",
            caption="Share of prompts where the answer's first token beats the wrong one, with its 95% CI. "
            "Dashed: the gate a behaviour must pass to be studied.",
            units=(unit,),
        ),
        figures.add(
            f"baseline-logit-differences-{key}",
            charts.logit_differences(splits),
            title="Logit differences of all prompts",
            caption="Left of zero the model prefers the wrong answer.",
            units=(unit,),
        ),
    ]
    pairs = {s: source.rows(prompts_unit, f"{s}.jsonl") for s in ("train", "test")}
    strings = _token_strings(source, behaviour, pairs["train"] + pairs["test"])
    by_id: dict[str, Any] = {str(p["id"]): p for ps in pairs.values() for p in ps}
    site.render(
        "behaviour.html.j2",
        f"behaviour-{key}.html",
        behaviour=behaviour,
        prompts=source.json(prompts_unit, "summary.json") or {},
        summary=summary,
        figures=[f for f in drawn if f],
        examples=_examples(pairs["train"], strings),
        worst=_worst(splits, by_id),
        n_pairs={s: len(ps) for s, ps in pairs.items() if ps},
        absent={u: source.why_absent(u) for u in (prompts_unit, unit) if u not in source.inputs},
        units=(prompts_unit, unit),
    )


def _examples(pairs: list[dict[str, Any]], strings: dict[int, str]) -> list[dict[str, Any]]:
    """Pairs to show: those whose tokens are all known, where there are any."""
    known = [p for p in pairs if _known([*p["clean_tokens"], *p["corrupted_tokens"]], strings)]
    known = known or [p for p in pairs if _known(p["clean_tokens"], strings)]
    return [_pair(p, strings) for p in _spread(known or pairs, N_EXAMPLES)]


def _spread(pairs: list[dict[str, Any]], n: int) -> list[dict[str, Any]]:
    """Examples of as many templates as possible."""
    by_template: dict[str, list[dict[str, Any]]] = {}
    for pair in pairs:
        by_template.setdefault(str(pair.get("template")), []).append(pair)
    lists = list(by_template.values())
    return [ps[i] for i in range(n) for ps in lists if i < len(ps)][:n]


def _token_strings(source: Source, behaviour: str, pairs: list[dict[str, Any]]) -> dict[int, str]:
    """Token id -> text, from the prompts' tokens.json, else from the tokens that graphs show."""
    table = source.json(f"prompts[{behaviour}]", "tokens.json")
    if table:
        return {int(i): str(t) for i, t in table.items()}
    ids: dict[str, list[int]] = {str(p["id"]): p["clean_tokens"] for p in pairs}
    strings: dict[int, str] = {}
    for row in (source.json(f"attribute[{behaviour}]", "scores.json") or {}).get("per_prompt") or []:
        graph = source.json(f"attribute[{behaviour}]", f"graphs/{row['slug']}.json") or {}
        shown = (graph.get("metadata") or {}).get("prompt_tokens") or []
        known = ids.get(str(row.get("prompt_id"))) or []
        if len(known) == len(shown):
            strings.update(zip(known, shown, strict=True))
    return strings


def _pair(pair: dict[str, Any], strings: dict[int, str]) -> dict[str, Any]:
    clean, corrupted = pair["clean_tokens"], pair["corrupted_tokens"]
    marks = {int(i): str(name) for name, i in (pair.get("positions") or {}).items()}
    changed = {i for i, (a, b) in enumerate(zip(clean, corrupted, strict=False)) if a != b}
    return {
        **pair,
        "marks": marks,
        "changed": changed,
        "clean_strings": _known(clean, strings),
        "corrupted_strings": _known(corrupted, strings),
    }


def _known(tokens: list[int], strings: dict[int, str]) -> list[str] | None:
    return [strings[t] for t in tokens] if all(t in strings for t in tokens) else None


def _worst(splits: dict[str, list[dict[str, Any]]], by_id: dict[str, Any]) -> list[dict[str, Any]]:
    rows = [
        {**r, "split": split, "d": d, "pair": by_id.get(str(r.get("id")))}
        for split, rs in splits.items() for r in rs if (d := real(r.get("logit_difference"))) is not None
    ]  # fmt: skip
    return sorted(rows, key=lambda r: r["d"])[:N_WORST]


def dictionaries_page(source: Source, site: Site, figures: Figures) -> None:
    """All dictionaries: a row each, metrics over layers, training curves, densities."""
    evaluations = {layer: e for layer in source.layers if (e := source.evaluation(layer))}
    scalars = {layer: rows for layer in source.layers if (rows := source.rows(f"train[{layer}]", "scalars.jsonl"))}
    units = tuple(f"train[{layer}]" for layer in source.layers)
    note = {"r2": "1 − FVU against the vector mean, on held-out rows.",
            "ce_loss_recovered": "1: splicing the dictionary in costs nothing; 0: as bad as zero-ablating the layer.",
            "l0": "Mean number of active features per token.",
            "dead_share": "Features that never fired on the evaluation rows."}  # fmt: skip
    drawn = [
        figures.add(
            f"dictionaries-{field.replace('_', '-')}",
            charts.over_layers(evaluations, field, label),
            title=formatting.title(label), caption=note[field], units=units,
        )
        for field, label, _ in charts.DICTIONARY_METRICS
    ]  # fmt: skip
    curves = [
        figures.add(
            "dictionaries-training",
            charts.loss_curves(scalars),
            title="Training: fraction of variance unexplained",
            caption="One line per layer; lower is better. A curve still falling at the end is undertrained.",
            units=units,
        ),
        figures.add(
            "dictionaries-density",
            charts.density_histograms(evaluations),
            title="Feature densities",
            caption="A hump far right is dense features, seldom interpretable; far left, features that hardly fire.",
            units=units,
        ),
    ]
    site.render(
        "dictionaries.html.j2",
        "dictionaries.html",
        evaluations=evaluations,
        errors={layer: e for layer, e in evaluations.items() if e.get("fvu_per_row")},
        alike=_alike(evaluations.values()),
        layers=source.layers,
        metrics=[f for f in drawn if f],
        curves=[f for f in curves if f],
        variants=[(*key, found) for key in source.variants if (found := source.variant(*key))],
        reasons={layer: source.why_absent(f"train[{layer}]") for layer in source.layers if layer not in evaluations},
    )


def _alike(evaluations: Iterable[dict[str, Any]]) -> str:
    """What all dictionaries are, where they are the same but for the layer; else nothing."""
    kinds = {(e.get("kind"), e.get("activation"), *(str(e.get(f)).partition(".")[0] for f in ("site_in", "site_out")))
             for e in evaluations}  # fmt: skip
    if len(kinds) != 1:
        return ""
    kind, activation, site_in, site_out = kinds.pop()
    return f"{str(kind or '').replace('_', ' ')}, {activation}, {site_in} → {site_out}"


def graph_page(source: Source, site: Site, figures: Figures, behaviour: str, labels: Labels) -> dict[str, Any] | None:
    """The viewer of a behaviour's graphs; returns the aggregated view for the overview's picture."""
    key, unit = formatting.slug(behaviour), f"attribute[{behaviour}]"
    scores = source.json(unit, "scores.json") or {}
    aggregate = source.json(unit, "aggregate.json")
    checked = ((source.json(f"intervene[{behaviour}]", "summary.json") or {}).get("edges") or {}).get("rows") or []
    view, entries = None, []
    if aggregate and aggregate.get("nodes"):
        view = aggregate_view(aggregate, labels, checked)
        if not view["scores"]:
            view["scores"] = _mean_scores(scores)
        name = f"graph-{key}-aggregate"
        write_data(site.out, name, view)
        entries.append({"data": name, "slug": "aggregate", "label": f"All {view['n_prompts']} prompts, aggregated"})
        figures.write_svg(f"circuit-{key}", circuit_svg(view, boxes=True, theme=LIGHT))
    for row in scores.get("per_prompt") or []:
        graph = source.json(unit, f"graphs/{row['slug']}.json")
        if graph is None:
            continue
        name = f"graph-{key}-{formatting.slug(str(row['slug']))}"
        write_data(site.out, name, prompt_view(graph, labels))
        prompt = formatting.clip(formatting.plain(str(row.get("prompt") or row["slug"])), 90)
        entries.append({"data": name, "slug": str(row["slug"]), "label": prompt})
    write_data(site.out, f"graphs-{key}", {"behaviour": behaviour, "graphs": entries})
    figure = figures.add(
        f"graph-scores-{key}",
        charts.graph_scores(scores.get("per_prompt") or []),
        title="How much of each graph the features explain",
        caption="One tick per prompt, diamond: median. In the pruned graphs, what was pruned counts as error.",
        units=(unit,),
    )
    site.render(
        "graph.html.j2",
        f"graph-{key}.html",
        behaviour=behaviour,
        key=key,
        entries=entries,
        scores=scores,
        seconds=(source.json(unit, "timing.json") or {}).get("seconds_per_prompt") or {},
        figure=figure,
        picture=circuit_svg(view, boxes=True, theme=INLINE) if view else None,
        absent=None if entries else source.why_absent(unit),
        unit=unit,
    )
    return view


def _mean_scores(scores: dict[str, Any]) -> dict[str, float]:
    """The aggregated graph's facts: means over its prompts, named so."""
    names = {"nodes": "mean nodes of a prompt's graph", "edges": "mean edges of a prompt's graph"}
    found = {names.get(k, k): v for k, v in scores.items() if isinstance(v, (int, float)) and k != "n_prompts"}
    return {k: round(v, 1) if k.startswith("mean ") else v for k, v in found.items()}


def interventions_page(source: Source, site: Site, figures: Figures, behaviour: str) -> None:
    """Effects against controls, groups, dose-response, patching, predicted against measured edges."""
    key, unit = formatting.slug(behaviour), f"intervene[{behaviour}]"
    summary = source.json(unit, "summary.json") or {}
    found = claims(source, behaviour)
    metric = str(summary.get("metric") or "logit difference")
    edges = summary.get("edges") or {}
    drawn: dict[str, Figure | None] = {
        "forest": figures.add(
            f"interventions-{key}", charts_interventions.forest(found),
            title="Effects against matched controls", units=(unit,),
            caption="Mean paired change per test prompt; bars are 95% cluster-bootstrap CIs. Controls are features "
            "matched on layer, position and activation. A claim needs the bar away from zero and from its control.",
        ),
        "dose": figures.add(
            f"dose-response-{key}", charts_interventions.dose_response(summary),
            title="Dose-response", units=(unit,),
            caption="Steering by α times each direction; bands are 95% CIs. A causal direction changes sign with α and "
            "beats random directions of the same norm; the difference of means is the baseline to beat.",
        ),
        "patching": figures.add(
            f"patching-{key}", charts_interventions.patching(summary),
            title="Where the information is", units=(unit,),
            caption="The corrupted prompt's activation of one layer at one position, written into the clean prompt: "
            "share of the metric's gap between the two that this removes "
            f"(n = {(summary.get('patching') or {}).get('n', 'n/a')}).",
        ),
        "edges_frozen": figures.add(
            f"edges-frozen-{key}", charts_interventions.edges(summary, "frozen"),
            title="Edges: predicted and measured, attention and norms frozen", units=(unit,),
            caption=f"Spearman {formatting.number(edges.get('spearman_frozen'))} over {edges.get('n', 0)} edges. "
            "On the dashed line prediction and measurement agree; off it, the graph itself is wrong.",
        ),
        "edges_live": figures.add(
            f"edges-live-{key}", charts_interventions.edges(summary, "live"),
            title="Edges: predicted and measured, live model", units=(unit,),
            caption=f"Spearman {formatting.number(edges.get('spearman_live'))} over {edges.get('n', 0)} edges. "
            "The distance to the frozen panel is what the linear picture leaves out.",
        ),
    }  # fmt: skip
    site.render(
        "interventions.html.j2",
        f"interventions-{key}.html",
        behaviour=behaviour,
        key=key,
        summary=summary,
        claims=with_strips(found),
        figures=drawn,
        groups=_group_figures(figures, summary, metric, key, unit),
        edges=edges,
        verdicts=VERDICT_WORDS,
        absent=None if summary else source.why_absent(unit),
        unit=unit,
    )


def _group_figures(figures: Figures, summary: dict[str, Any], metric: str, key: str, unit: str) -> list[Figure]:
    """A forest plot of the groups per kind of intervention."""
    kinds = dict.fromkeys(str(g.get("kind")) for g in summary.get("groups") or [])
    drawn = [
        figures.add(
            f"groups-{formatting.slug(kind)}-{key}",
            charts_interventions.groups_forest([g for g in summary["groups"] if g.get("kind") == kind], metric),
            title=f"Groups: {formatting.title(kind).lower()}",
            caption="Each group is intervened on by itself; p-values in the table are adjusted over all tests.",
            units=(unit,),
        )
        for kind in kinds
    ]
    return [f for f in drawn if f]


def with_strips(found: list[Claim]) -> list[dict[str, Any]]:
    """Claims with a picture of their intervals on one common scale."""
    domain = shared_domain(found)
    return [{"claim": c, "strip": interval_strip(c, domain)} for c in found]


def overview_page(source: Source, site: Site, views: dict[str, Any], phases: list[dict[str, Any]]) -> None:
    """The overview: the claims in plain words, the pipeline, the circuits, how far to trust it."""
    behaviours = []
    for behaviour in source.behaviours:
        view = views.get(behaviour)
        baseline = source.json(f"baseline[{behaviour}]", "summary.json") or {}
        prompts = source.json(f"prompts[{behaviour}]", "summary.json") or {}
        found = claims(source, behaviour)
        behaviours.append(
            {
                "name": behaviour,
                "key": formatting.slug(behaviour),
                "description": prompts.get("description") or "",
                "splits": baseline.get("splits") or {},
                "claims": with_strips(found),
                "held": sum(c.verdict in ("supported", "caveat") for c in found),
                "picture": circuit_svg(view, boxes=False, theme=INLINE, max_nodes=40, max_edges=70) if view else None,
                "why": None if found else source.why_absent(f"intervene[{behaviour}]"),
                "trust": trust_rows(source, behaviour),
            }
        )
    n_graphs = sum(
        len((source.json(f"attribute[{b}]", "scores.json") or {}).get("per_prompt") or []) for b in source.behaviours
    )
    site.render(
        "index.html.j2",
        "index.html",
        behaviours=behaviours,
        phases=phases,
        unfinished=source.unfinished(),
        no_graphs=source.no_graphs,
        n_dictionaries=sum(bool(source.evaluation(layer)) for layer in source.layers),
        n_variants=sum(bool(source.variant(*key)) for key in source.variants),
        n_graphs=n_graphs,
        seconds=sum(real(u.get("seconds")) or 0 for u in source.units),
        verdicts=VERDICT_WORDS,
    )


def chart_theme() -> dict[str, Any]:
    """Palettes and config for drawing charts in a page, light and dark."""
    from .style import DARK, PAGE_FONT, chart_config

    return {name: {"palette": p, "config": themed(chart_config(PAGE_FONT), p)} for name, p in
            (("light", LIGHT), ("dark", DARK))}  # fmt: skip
