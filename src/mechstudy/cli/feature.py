"""`feature`: what a run, a set of dictionaries or a model knows of one feature."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from mechstudy import api, models
from mechstudy.cli import one_prompt
from mechstudy.cli.one_prompt import noted
from mechstudy.cli.options import Json
from mechstudy.cli.show import console, print_json, table
from mechstudy.features.asked_labels import influence_of
from mechstudy.report.formatting import number, percent, plain, visible

if TYPE_CHECKING:
    from mechstudy.api.feature_card import FeatureCard

_LISTED = 8  # recorded features named beside one that is not
_AROUND = (12, 4)  # tokens of an example shown before and after its peak
_BLOCKS = "▁▂▃▄▅▆▇█"


def feature(
    name: Annotated[str, typer.Argument(metavar="LAYER/FEATURE", help="Layer and number, such as 13/1741.")],
    dictionaries: one_prompt.Dictionaries = None,
    model: one_prompt.ModelSource = None,
    basis: one_prompt.Basis = None,
    n: Annotated[
        int, typer.Option("--n", min=1, help="Tokens promoted, tokens suppressed, and examples, at most.")
    ] = 8,
    intervals: Annotated[
        bool, typer.Option("--intervals", help="Also text drawn from each interval of its activations.")
    ] = False,
    device: one_prompt.Device = "auto",
    as_json: Json = False,
) -> None:
    """Show one feature: label, activations, the tokens it promotes and suppresses, text on which it fires, circuits.

    Of the features in its graphs a run has recorded all of that. Of others, and of sets, promoted and suppressed tokens
    are computed: the decoder row through the unembedding (logit lens). Without dictionaries the numbers name a neuron.

    [dim]mechstudy feature 13/1741 --dictionaries runs/demo[/]
    [dim]mechstudy feature 13/741[/]
    """
    one_prompt.check_dictionaries(dictionaries)
    kind = one_prompt.basis_of(basis, dictionaries)
    with noted():
        card = None
        if model is None and kind == "dictionaries":
            card = api.describe_feature(name, dictionaries, n_tokens=n)  # without a model, as far as a run knows it
        if card is None or not card.promotes:
            loaded = models.load_model(model or one_prompt.source_of(dictionaries), device=device)
            card = api.describe_feature(name, dictionaries, model=loaded, basis=kind, n_tokens=n)
    known = () if card.density is not None else _recorded(one_prompt.run_of(dictionaries), card)
    if as_json:
        print_json(card.as_json() | {"examples": list(card.examples[:n])})
        return
    _show(card, dictionaries, n)
    if intervals:
        _show_intervals(card)
    if known:
        print(f"recorded:   {', '.join(known)}")


def _recorded(run: api.Run | None, card: FeatureCard) -> Sequence[str]:
    """Features that a run has recorded in place of one that it has not: of its layer, else of every one."""
    if run is None:
        return ()
    pages = sorted(run.feature_pages, key=influence_of, reverse=True)
    layer = int(card.feature.partition("/")[0])
    chosen = [page for page in pages if page["layer"] == layer] or pages
    return [f"{page['layer']}/{page['feature']}" for page in chosen[:_LISTED]]


def _show(card: FeatureCard, dictionaries: str | None, n: int) -> None:
    sites = " -> ".join(dict.fromkeys((card.site_in, card.site_out)))
    of = "" if card.n_features is None else f", one of {card.n_features:,}"
    kind = "neuron" if card.kind == "neurons" else f"feature of a {card.kind.replace('_', ' ')}"
    print(f"{card.feature}: {kind} ({sites}{of})")
    if card.label:
        print(f"label:      {card.label}")
    if card.rule:
        print(f"rule:       {_rule(card.rule)}")
    if card.asked:
        print(f"asked:      {_asked(card.asked)}")
    if card.density is None:
        print(
            "density:    not recorded"
            + ("" if dictionaries is None else ": runs search text for the features of their graphs")
        )
    else:
        mean, top = number(card.mean_activation), number(card.max_activation)
        size = f"a size of {top}" if card.kind == "neurons" else top
        print(f"density:    active on {percent(card.density, 2)} of tokens, there {mean} on average and {size} at most")
    if card.histogram:
        print(f"histogram:  {_histogram(card.histogram)}")
    for which, tokens in (("promotes", card.promotes), ("suppresses", card.suppresses)):
        shown = "  ".join(f"{visible(token)} {number(value)}" for token, value in tokens)
        print(f"{which + ':':<11} {shown or 'not known without a model'}")
    for behaviour, graph in card.graphs.items():
        places = ", ".join(map(str, graph.get("positions") or ()))
        print(f"circuit:    {behaviour}, influence {number(graph.get('influence'), 3)} at {places}")
    if card.examples:
        rows = table(">activation", "~text, its peak in brackets")
        for example in card.examples[:n]:
            rows.add_row(number(_peak(example)), _marked(example))
        console().print(rows)


def _show_intervals(card: FeatureCard) -> None:
    if not card.intervals:
        print("intervals:  not recorded")
        return
    rows = table(">from", ">to", ">activations", ">activation", "~text drawn at random, its peak in brackets")
    for one in card.intervals:
        ends = number(one["low"]), number(one["high"]), f"{one['count']:,}"
        shown = [(number(_peak(example)), _marked(example)) for example in one["examples"]] or [("", Text())]
        for i, (activation, text) in enumerate(shown):
            rows.add_row(*(ends if i == 0 else ("", "", "")), activation, text)
    console().print(rows)


def _histogram(histogram: Mapping[str, Any]) -> str:
    """A character for two bins, its height by the logarithm of their count, from the lowest value to the highest."""
    width, down, up = histogram["bin_width"], histogram["negative"], histogram["positive"]
    below, above = ([sum(side[i : i + 2]) for i in range(0, len(side), 2)] for side in (down, up))
    if not below and not above:
        return "no activation"
    scale = (len(_BLOCKS) - 1) / math.log1p(max([*below, *above]))
    left, right = (
        "".join(_BLOCKS[round(scale * math.log1p(count))] if count else " " for count in counts)
        for counts in (below[::-1], above)
    )
    lowest = f"{number(-width * len(down))} {left} " if down else ""
    return f"{lowest}0 {right} {number(width * len(up))} ({sum(down) + sum(up):,} activations, log scale)"


def _rule(rule: Mapping[str, Any]) -> str:
    """What it fires on, and how far other documents bear that out."""
    if not rule["rule"]:
        return "none: nothing that recurs, or too few strong activations in the text that was searched"
    where, other = "below zero " if rule["sign"] < 0 else "", rule["shuffled"]
    beside = "" if other is None else f", another feature's rule {number(other, 2)}"
    said = "" if rule["claimed"] else "; too little to claim"
    return f"{where}{plain(rule['rule'])}: {number(rule['score'], 2)} on held-out text (.5 is chance{beside}){said}"


def _asked(asked: Mapping[str, Any]) -> str:
    """What an endpoint called it, and how far the endpoint itself can use that on other text."""
    said = f"{plain(asked['label'])} (by {plain(asked['model'])})"
    if asked["score"] is None:
        return f"{said}; not scored"
    beside = "" if asked["shuffled"] is None else f", another feature's label {number(asked['shuffled'], 2)}"
    return f"{said}: {number(asked['score'], 2)} on held-out text, by its own judgement (.5 is chance{beside})"


def _peak(example: Mapping[str, Any]) -> float:
    return float(example["activations"][int(example["peak"])])


def _marked(example: Mapping[str, Any]) -> Text:
    """The text around an example's peak, which stands in brackets."""
    tokens: Sequence[str] = [visible(str(token), " ") for token in example["tokens"]]
    peak = int(example["peak"])
    before, after = tokens[max(0, peak - _AROUND[0]) : peak], tokens[peak + 1 : peak + 1 + _AROUND[1]]
    return Text.assemble("".join(before), (f"[{tokens[peak]}]", "bold"), "".join(after))
