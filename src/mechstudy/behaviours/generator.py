"""Balanced contrastive prompt pairs, generated from templates and word lists."""

from __future__ import annotations

import hashlib
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from string import Formatter

from mechstudy.behaviours.schema import SPLITS, Encode, PromptPair
from mechstudy.behaviours.tokenise import UNKNOWN, Tokens, Unsuitable, pair_tokens, require_open_end, same_positions
from mechstudy.core.errors import MechstudyError, nearest
from mechstudy.models.unknown_token import UnknownToken

Rank = Callable[[str], int]
"""A hash of a text, keyed by seed, behaviour and split: the only randomness of a family."""


@dataclass(frozen=True)
class Template:
    """A prompt with named holes, such as "The {subject} near the {attractor}"."""

    name: str
    text: str

    def render(self, fields: Mapping[str, str], named: Iterable[str] | Mapping[str, str]) -> Rendered:
        """The text with its holes filled, and the character at which each named hole ends.

        Args:
            fields: the word for each hole.
            named: holes that are positions; a mapping (position name -> hole) gives them other names.
        """
        text, ends = "", {}
        for literal, field, _, _ in Formatter().parse(self.text):
            text += literal
            if field is not None:
                text += fields[field]
                ends[field] = len(text)
        holes = named if isinstance(named, Mapping) else {name: name for name in named}
        return Rendered(text, {name: ends[hole] for name, hole in holes.items()})


@dataclass(frozen=True)
class Rendered:
    """A prompt's text, and the character offset (exclusive) at which each named word ends."""

    text: str
    ends: Mapping[str, int]


@dataclass(frozen=True)
class Draft:
    """A pair that has not been tokenised yet."""

    clean: Rendered
    corrupted: Rendered
    answer: str
    wrong_answer: str


@dataclass(frozen=True)
class Slot:
    """One place in a data set, filled by the first draft that suits the tokenizer.

    Attributes:
        balance: class that the data set is balanced over, such as "singular".
        template: name of the template.
        item: word that is used about as often as others.
        group: cluster of the bootstrap.
        key: text that is hashed to order slots.
        drafts: candidates, in order of preference.
    """

    balance: str
    template: str
    item: str
    group: str
    key: str
    drafts: Callable[[], Iterator[Draft]]


@dataclass(frozen=True)
class Behaviour:
    """A family of contrastive prompts.

    Attributes:
        name: as a study writes it.
        description: one sentence.
        positions: names of the positions that every prompt has.
        templates: of each split; the two splits share none.
        lexicon: words of each split; the two splits share none.
        slots: function of (split, rank) that lists every prompt that could be made.
    """

    name: str
    description: str
    positions: tuple[str, ...]
    templates: Mapping[str, tuple[Template, ...]]
    lexicon: Mapping[str, frozenset[str]]
    slots: Callable[[str, Rank], Iterable[Slot]]

    def generate(
        self,
        encode: Encode,
        n: int = 100,
        split: str = "train",
        seed: int = 0,
        unknown: UnknownToken | None = None,
    ) -> list[PromptPair]:
        """The first ``n`` prompt pairs of the split's sequence for this seed and tokenizer.

        The sequence does not depend on ``n``: asking for more keeps the earlier pairs. The clean and the corrupted
        prompt of a pair have equal token lengths and the same named positions, and the answers differ in their first
        token.

        Args:
            encode: text to token ids (`LanguageModel.encode`).
            n: number of pairs.
            split: ``train`` or ``test``.
            seed: of the sequence.
            unknown: the tokenizer's unknown token; prompts that are mostly it, and answers with it, are skipped.

        Raises:
            MechstudyError: unknown split, ``n`` below 1, more pairs than exist, or an ``encode`` that adds tokens after
                the prompt.
        """
        if split not in SPLITS:
            valid = nearest(split, SPLITS)
            raise MechstudyError(
                f"{self.name}: unknown split {split!r}",
                facts={"splits": ", ".join(SPLITS)},
                fix=f"split: {valid}" if valid else None,
            )
        if n < 1:
            raise MechstudyError(f"{self.name}: {n} {split} prompts asked for", fix="ask for at least 1")
        rank, skipped = self._rank(split, seed), Counter[str]()
        tokens = Tokens(encode, unknown)
        require_open_end(tokens)
        stream = _fill(self.slots(split, rank), f"{self.name}-{split}", tokens, rank, skipped)
        pairs = list(islice(stream, n))
        if len(pairs) == n:
            return pairs
        reasons = [f"{count} drafts: {kind}" for kind, count in sorted(skipped.items())]
        raise MechstudyError(
            f"{self.name}: {n} {split} prompts asked for, but this tokenizer allows {len(pairs)} at most",
            facts={"skipped": "\n".join(reasons)} if reasons else None,
            fix=f"ask for at most {len(pairs)}"
            if pairs
            else unknown.fix
            if unknown is not None and skipped[UNKNOWN]
            else "bring your own prompts as JSONL",
        )

    def _rank(self, split: str, seed: int) -> Rank:
        prefix = f"{seed}\n{self.name}\n{split}\n"
        return lambda text: int.from_bytes(hashlib.sha256((prefix + text).encode()).digest()[:8], "big")


def pick(rank: Rank, choices: Sequence[str], key: str) -> str:
    """One of ``choices``, chosen by the hash of ``key``."""
    return choices[rank(key) % len(choices)]


class _Pool:
    """The unused slots of one balance class and template, by item, in hash order."""

    def __init__(self, slots: Iterable[Slot], rank: Rank) -> None:
        self.by_item: dict[str, list[Slot]] = {}
        for slot in sorted(slots, key=lambda slot: rank(slot.key)):
            self.by_item.setdefault(slot.item, []).append(slot)
        self.order = {item: index for index, item in enumerate(self.by_item)}

    def pop(self, used: Mapping[str, int], used_in_group: Mapping[str, int]) -> Slot:
        """Removes and returns the next slot of the least used item, ties broken by the least used group."""
        item = min(
            self.by_item,
            key=lambda item: (used[item], used_in_group[self.by_item[item][0].group], self.order[item]),
        )
        slot = self.by_item[item].pop(0)
        if not self.by_item[item]:
            del self.by_item[item]
        return slot


def _fill(slots: Iterable[Slot], name: str, tokens: Tokens, rank: Rank, skipped: Counter[str]) -> Iterator[PromptPair]:
    """Pairs of each balance class in strict turn, templates in turn within a class, the least used item first.

    Ends when the class whose turn it is has no slots left, so that the pairs are balanced. ``skipped`` counts, by kind,
    the drafts that do not suit this tokenizer.
    """
    grouped: dict[str, dict[str, list[Slot]]] = {}
    for slot in slots:
        grouped.setdefault(slot.balance, {}).setdefault(slot.template, []).append(slot)
    turns = [deque(_Pool(pool, rank) for pool in by_template.values()) for by_template in grouped.values()]
    used: Counter[str] = Counter()
    used_in_group: Counter[str] = Counter()
    count = 0
    while turns:
        for turn in turns:
            filled = None
            while turn and filled is None:
                pool = turn.popleft()
                while pool.by_item and filled is None:
                    slot = pool.pop(used, used_in_group)
                    filled = _suit(slot, f"{name}-{count:04d}", tokens, skipped)
                if pool.by_item:
                    turn.append(pool)
            if filled is None:
                return
            used[slot.item] += 1
            used_in_group[slot.group] += 1
            count += 1
            yield filled


def _suit(slot: Slot, id: str, tokens: Tokens, skipped: Counter[str]) -> PromptPair | None:
    """The slot's first draft that suits the tokenizer, as a prompt pair; None if no draft does."""
    for draft in slot.drafts():
        clean, corrupted = draft.clean, draft.corrupted
        try:
            ids = pair_tokens(tokens, clean.text, corrupted.text, draft.answer, draft.wrong_answer)
            positions = same_positions(tokens, clean.text, clean.ends, corrupted.text, corrupted.ends)
        except Unsuitable as error:
            skipped[error.kind] += 1
            continue
        return PromptPair(
            id=id,
            template=slot.template,
            group=slot.group,
            clean=clean.text,
            corrupted=corrupted.text,
            answer=draft.answer,
            wrong_answer=draft.wrong_answer,
            positions=positions,
            clean_tokens=ids.clean,
            corrupted_tokens=ids.corrupted,
            answer_tokens=ids.answer,
            wrong_tokens=ids.wrong,
        )
    return None
