"""Antonyms: "The opposite of hot is" -> " cold".

The corrupted prompt gives another word of the same kind, and the wrong answer is that word's antonym.
"""

from __future__ import annotations

from collections.abc import Iterator

from mechstudy.behaviours.generator import Behaviour, Draft, Rank, Slot, Template

TEMPLATES = {
    "train": (
        Template("the-opposite", "The opposite of {word} is"),
        Template("the-antonym", "The antonym of {word} is"),
        Template("two-opposites", "Opposites: up and down, {word} and"),
        Template("opposite-word", "The opposite of the word {word} is the word"),
    ),
    "test": (
        Template("an-antonym", "An antonym for {word} is"),
        Template("exact-opposite", "The exact opposite of {word} would be"),
        Template("list", "These words are opposites: left and right, {word} and"),
        Template("means-the-opposite", "The word that means the opposite of {word} is"),
    ),
}

# Pairs by part of speech: the corrupted word is of the clean word's kind. Every word occurs once in all lists.
PAIRS = {
    "train": {
        "adjective": """hot cold, tall short, happy sad, strong weak, old young, wet dry, early late, clean dirty,
            deep shallow, wide narrow, cheap expensive, true false, rough smooth, brave cowardly, alive dead,
            guilty innocent, kind cruel, polite rude, tight loose, male female, positive negative, legal illegal,
            ancient modern, simple complex, raw cooked, major minor, inner outer, visible invisible, wild tame,
            urban rural, bright dim, present absent, smart stupid""",
        "verb": """love hate, buy sell, start stop, laugh cry, accept reject, attack defend, expand contract,
            give take, arrive leave, build destroy, ask answer, live die, praise criticize, save spend,
            melt freeze, hide reveal, import export, multiply divide, succeed fail""",
        "noun": """day night, friend enemy, heaven hell, profit loss, past future, hero villain, ceiling floor,
            majority minority, reward punishment, strength weakness, success failure, optimism pessimism""",
        "function": "before after, inside outside, always never, over under",
    },
    "test": {
        "adjective": """big small, fast slow, rich poor, light dark, hard soft, full empty, good bad, high low,
            open closed, thick thin, loud quiet, easy difficult, safe dangerous, sharp dull, sweet sour,
            awake asleep, healthy sick, lazy energetic, ugly beautiful, proud humble, public private,
            possible impossible, active passive, artificial natural, temporary permanent, internal external,
            maximum minimum, horizontal vertical, generous selfish, superior inferior, domestic foreign,
            rare common, friendly hostile""",
        "verb": """win lose, push pull, begin end, rise fall, agree disagree, increase decrease, float sink,
            remember forget, borrow lend, enter exit, teach learn, allow forbid, send receive, lock unlock,
            combine separate, add subtract, appear disappear, sit stand, create demolish""",
        "noun": """war peace, life death, north south, east west, victory defeat, truth lie, virtue vice,
            predator prey, sunrise sunset, supply demand, wealth poverty, joy sorrow, courage fear,
            winter summer""",
        "function": "above below, forward backward, everything nothing, with without",
    },
}


# Pairs of similar meaning, which never corrupt each other: the opposite of "hard" may also be " easy".
NEIGHBOURS = (
    "old young ancient modern",
    "smart stupid bright dim",
    "kind cruel polite rude brave cowardly",
    "tall short deep shallow wide narrow",
    "clean dirty wet dry",
    "inner outer present absent",
    "happy sad love hate laugh cry",
    "success failure profit loss",
    "hero villain friend enemy",
    "live die save spend",
    "before after inside outside over under",
    "easy difficult hard soft",
    "big small thick thin high low",
    "internal external domestic foreign public private",
    "active passive lazy energetic",
    "generous selfish friendly hostile proud humble",
    "healthy sick good bad",
    "rise fall increase decrease add subtract float sink",
    "begin end enter exit appear disappear",
    "superior inferior high low maximum minimum",
    "joy sorrow courage fear",
    "victory defeat war peace",
)


def neighbours(pair: tuple[str, str], other: tuple[str, str]) -> bool:
    """Whether a word of one pair could be an answer to the other."""
    return any(pair[0] in group.split() and other[0] in group.split() for group in NEIGHBOURS)


def antonyms(split: str, kind: str) -> list[tuple[str, str]]:
    """Pairs (word, its opposite) of one part of speech, each in one direction."""
    return [(word, opposite) for word, opposite in (entry.split() for entry in PAIRS[split][kind].split(","))]


def _slots(split: str, rank: Rank) -> Iterator[Slot]:
    for template in TEMPLATES[split]:
        for kind in PAIRS[split]:
            pairs = antonyms(split, kind)
            for pair in pairs:
                others = [
                    directed
                    for other in pairs
                    if other != pair and not neighbours(pair, other)
                    for directed in (other, (other[1], other[0]))
                ]
                for word, opposite in (pair, pair[::-1]):
                    yield _slot(template, word, opposite, pair, others, rank)


def _slot(
    template: Template, word: str, opposite: str, pair: tuple[str, str], others: list[tuple[str, str]], rank: Rank
) -> Slot:
    key = f"{template.name}/{word}"

    def drafts() -> Iterator[Draft]:
        clean = template.render({"word": word}, ("word",))
        for other, its_opposite in sorted(others, key=lambda other: rank(f"{key}/{other[0]}")):
            corrupted = template.render({"word": other}, ("word",))
            yield Draft(clean, corrupted, f" {opposite}", f" {its_opposite}")

    return Slot(
        balance="all",
        template=template.name,
        item=word,
        group=f"{template.name}/{'+'.join(pair)}",
        key=key,
        drafts=drafts,
    )


BEHAVIOUR = Behaviour(
    name="antonym",
    description="The opposite of a word.",
    positions=("word", "last"),
    templates=TEMPLATES,
    lexicon={
        split: frozenset(word for kind in kinds for pair in antonyms(split, kind) for word in pair)
        for split, kinds in PAIRS.items()
    },
    slots=_slots,
)
