"""The page of a behaviour as an argument: question, model, circuit, evidence, limits; the other pages are its tools."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

from mechstudy.report.claims import claims
from mechstudy.report.formatting import interval, number, slug
from mechstudy.report.members_picture import in_words, members_of, members_svg, positions_in_order
from mechstudy.report.pictures import INLINE
from mechstudy.report.site import Site
from mechstudy.report.verdict_page import STATE_BADGES, verdict_of

# What a criterion's number says, whatever it is.
_SAYS = {
    "behaviour": "On test prompts the right answer is ahead by {} nats on average.",
    "sufficiency": "Kept alone, with every other node replaced, the circuit carries {} of the behaviour.",
    "necessity": "Replaced by itself, it takes {} of the behaviour away.",
    "rivals": "It carries {} more than random circuits of the same size, kinds and layers.",
    "adversary": "Where only those other nodes are replaced that help, it carries {}.",
    "explained": "Without error nodes, which no feature explains, it carries {}.",
    "variants": "The circuit of other dictionaries that carries least without error nodes carries {}.",
    "controls": "Without error nodes it carries {} more than circuits of frozen random dictionaries.",
    "stability": "Circuits that halves of the prompts choose overlap with it by {} (Jaccard index).",
    "robustness": "In {} of the ways to choose size, ranking, replacement and template it carries enough.",
    "specificity": "Of its own effect, it has {} on another behaviour.",
}


def story_page(site: Site, behaviour: str, examples: Sequence[Mapping[str, Any]]) -> None:
    """The argument of a behaviour.

    Args:
        site: the report; the figures of the behaviour's other pages are drawn.
        behaviour: its name.
        examples: pairs with the texts of their tokens.
    """
    data = site.data
    unit, prompts = data.verdicts[behaviour], data.prompts[behaviour]
    record = unit.json("verdict.json")
    members = members_of(record.get("members") or [])
    pairs = list(chain(*(prompts.rows(f"{split}.jsonl") or [] for split in ("train", "test"))))
    positions = positions_in_order(members, pairs)
    tokens = {name: examples[0]["clean_strings"][i] for i, name in examples[0]["marks"].items()} if examples else {}
    n_layers = int(data.model.json("model.json").get("n_layers") or 0)
    said = [(i, c, _sentence(c)) for i, c in enumerate(record.get("criteria") or [])]
    site.render(
        "story",
        slug(behaviour),
        behaviour=behaviour,
        prompts=prompts,
        baseline=data.baselines[behaviour],
        test=(data.baselines[behaviour].json("summary.json").get("splits") or {}).get("test"),
        examples=examples[:2],
        verdict=verdict_of(site, behaviour),
        record=record,
        picture=members_svg(members, positions, n_layers, tokens, INLINE) if members and n_layers else None,
        where=in_words(members, positions),
        shown=[row for row in said if row[1]["state"] == "met"],
        open=[row for row in said if row[1]["state"] in ("not met", "open")],
        not_asked=[row for row in said if row[1]["state"] == "not measured"],
        weakest=_weakest_replacement(record),
        claims=claims(data.interventions[behaviour]),
        badges=STATE_BADGES,
        absent=None if record else data.why_no_circuit(unit, behaviour),
        unit=unit.name,
    )


def _sentence(c: Mapping[str, Any]) -> str:
    """What was measured and what was asked."""
    if c["value"] is None:
        return f"{c['question']} {c.get('missing') or 'It is undefined.'}"
    value = number(c["value"], 2, scientific=False) + (f" {interval(c['ci'])}" if c["ci"] else "")
    asked = f"Asked: {'at most' if c['at_most'] else 'at least'} {c['threshold']:g}."
    return f"{_SAYS[c['name']].format(value)} {asked}"


def _weakest_replacement(record: Mapping[str, Any]) -> dict[str, Any] | None:
    """The other kind of replacement under which the circuit carries least."""
    others = [
        {"index": i, **row}
        for i, row in enumerate(record.get("by_replacement") or [])
        if row["f"] is not None and row["replaced_by"] != record["replaced_by"]
    ]
    return min(others, key=lambda row: row["f"], default=None)
