"""Users' own prompts: a file of contrastive pairs, one per line (see docs/reference/behaviours.md)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from mechstudy.behaviours.donors import Donors
from mechstudy.behaviours.formats import converted
from mechstudy.behaviours.hub_files import DataFile, hub_files, is_hub
from mechstudy.behaviours.pairing import tokenised
from mechstudy.behaviours.readers import Broken, Row, Rows, read_rows
from mechstudy.behaviours.remarks import Texts, remarks
from mechstudy.behaviours.row_checks import ANSWERS, KEYS, REQUIRED, checked_row, renamed
from mechstudy.behaviours.schema import SPLITS, AnswerSets, Encode, PromptPair
from mechstudy.behaviours.special_text import CHAT_MARKUP, FOREIGN, OWN_BOS, Opening
from mechstudy.behaviours.splits import group_of, mark_repeats, split_of, splits_of, stated_splits
from mechstudy.behaviours.tokenise import TOO_LONG, UNKNOWN, Tokens, require_open_end, texts_of
from mechstudy.core.errors import MechstudyError
from mechstudy.models.context import ContextLength
from mechstudy.models.unknown_token import MOST, UnknownToken

MAX_LISTED = 10
MAX_NAMED = 3  # in a note
SPLIT = "split of the file"  # a key that no file has
# A line with one of these is a mistake about the model, and ends a study that is not strict too.
FATAL = (TOO_LONG, OWN_BOS, CHAT_MARKUP, FOREIGN)


@dataclass(frozen=True)
class PromptSource:
    """A file of prompts, and how to read it.

    Attributes:
        path: the file; its ending says whether it is JSON Lines, JSON, CSV, TSV or Parquet.
        format: name of a published shape (`formats.FORMATS`).
        counterfactual: which of the counterfactuals of that shape is the corrupted prompt.
        columns: key -> column, or a text with columns in braces.
        align: ``ends`` accepts clean and corrupted prompts of different numbers of tokens (`PromptPair.corrupted_at`).
        answer_sets: how the logits of several right or wrong answers are combined (`Answers`).
        answer_tokens: ``all`` compares all tokens of the answers, and not only their first ones.
        corrupted: ``other-line`` takes each line's corrupted prompt from another one, chosen by ``seed``.
        parts: the files of a dataset, with the split that each of them is.
        strict: one line that cannot be used is an error; otherwise such lines are left out and counted.
    """

    path: Path
    format: str | None = None
    counterfactual: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    align: str | None = None
    corrupted: str | None = None
    answer_sets: AnswerSets | None = None
    answer_tokens: Literal["first", "all"] | None = None
    strict: bool = True
    seed: int = 0
    parts: tuple[DataFile, ...] = ()

    @classmethod
    def of(cls, path: Path, reading: Mapping[str, Any], seed: int = 0) -> PromptSource:
        """The source as a study names it: fields that are None have their defaults, and ``strict`` is False."""
        given = {name: value for name, value in reading.items() if value is not None}
        return cls(path, seed=seed, **({"strict": False} | given))

    @classmethod
    def named(cls, name: str, base: Path, reading: Mapping[str, Any], seed: int = 0) -> PromptSource:
        """As `of`, for a path relative to ``base`` or a dataset ``hf:owner/name`` (`hub_files`).

        Raises:
            MechstudyError: the dataset cannot be fetched, or has no such configuration or split.
        """
        if not is_hub(name):
            return cls.of(base / name, reading, seed)
        return replace(cls.of(Path(name), reading, seed), parts=hub_files(name))

    def read(self) -> Rows:
        """The checked rows of the file, and the lines that cannot be used, as far as is known without a tokenizer.

        A corrupted prompt is required of every line if any has one.

        Raises:
            MechstudyError: the file cannot be read as a whole, or holds no rows.
        """
        found = self._found()
        rows: dict[int, Row] = {}
        for number, row in found.rows.items():
            try:
                split = {"split": row.pop(SPLIT)} if SPLIT in row else {}
                if self.format is not None:
                    row = converted(self.format, row, self.counterfactual)
                elif self.columns:
                    row = renamed(row, self.columns)
                if split and "group" in row:  # published splits share groups, which are never in both here
                    row["group"] = f"{row['group']} ({split['split']})"
                rows[number] = split | row
            except Broken as error:
                found.broken[number] = error
        required = self._required(rows.values())
        for number, row in list(rows.items()):
            try:
                rows[number] = checked_row(row, required)
            except Broken as error:
                found.broken[number] = error
                del rows[number]
        return Rows(rows, found.broken)

    def _found(self) -> Rows:
        """The rows as they are; those of a dataset's files are numbered on and have the split of their file."""
        if not self.parts:
            return read_rows(self.path)
        every = Rows()
        for part in self.parts:
            read = read_rows(part.path)
            after = max([0, *every.rows, *every.broken])
            every.broken |= {after + number: error for number, error in read.broken.items()}
            more = {} if part.split is None else {SPLIT: part.split}
            every.rows |= {after + number: row | more for number, row in read.rows.items()}
        return every

    def _required(self, rows: Iterable[Row]) -> tuple[str, ...]:
        if self.corrupted is not None:
            return tuple(key for key in REQUIRED if key not in ("corrupted", "wrong_answer"))
        usable = [row for row in rows if row.keys() <= set(KEYS)]
        if usable and not any("corrupted" in row for row in usable):
            return tuple(key for key in REQUIRED if key != "corrupted")
        return REQUIRED


@dataclass(frozen=True)
class UserPrompts:
    """The pairs of a file.

    Attributes:
        pairs: by split, both non-empty, in the file's order.
        left_out: lines that cannot be used, by number.
        n_lines: lines of the file.
    """

    pairs: dict[str, list[PromptPair]]
    left_out: Mapping[int, Broken]
    n_lines: int


def read_prompts(
    source: PromptSource, encode: Encode, context: ContextLength | None = None, unknown: UnknownToken | None = None
) -> UserPrompts:
    """Reads a user's prompts, tokenises and validates every line, and splits them.

    A line without ``split`` is put into a split by the hash of its group: no group is in both splits, and adding lines
    does not move earlier ones.

    Args:
        source: the file.
        encode: text to token ids (`LanguageModel.encode`).
        context: the model's positions.
        unknown: the tokenizer's unknown token.

    Raises:
        MechstudyError: the file is missing or empty; lines are broken and the source is strict; a line brings a BOS
            token or chat markup of its own, or is longer than the model's context; the tokenizer does not know the
            text of most lines; or a split has no line.
    """
    tokens = Tokens(encode, unknown)
    require_open_end(tokens)
    opening = Opening(tokens)
    read = source.read()
    rows, broken = read.rows, read.broken

    def pair(row: Row, number: int) -> PromptPair:
        return tokenised(
            row,
            f"line-{number:04d}",
            tokens,
            opening,
            context,
            align=source.align is not None,
            answer_sets=source.answer_sets,
            whole=source.answer_tokens == "all",
        )

    pairs: dict[int, PromptPair] = {}
    donors = Donors(rows, tokens, source.seed, align=source.align is not None) if source.corrupted else None
    for number, row in rows.items():
        try:
            pairs[number] = pair(row, number) if donors is None else donors.first(number, pair)
        except Broken as error:
            broken[number] = error
    splits = splits_of(rows, pairs, broken)
    mark_repeats(pairs, broken)
    n_lines = len(rows.keys() | broken.keys())
    strange = {number: error for number, error in broken.items() if error.kind == UNKNOWN}
    if unknown is not None and len(strange) > max(1, MOST * n_lines):
        raise _not_known(source.path, rows, strange, n_lines, tokens, unknown)
    if broken and source.strict:
        raise report_of(source.path, broken, n_lines)
    if fatal := {number: error for number, error in broken.items() if error.kind in FATAL}:
        raise report_of(source.path, fatal, n_lines)
    result: dict[str, list[PromptPair]] = {
        split: [pairs[number] for number in pairs if number not in broken and splits[number] == split]
        for split in SPLITS
    }
    _require_both(source.path, {split: len(result[split]) for split in SPLITS}, broken, n_lines)
    return UserPrompts(result, dict(sorted(broken.items())), n_lines)


def load_jsonl(path: Path, encode: Encode) -> dict[str, list[PromptPair]]:
    """The pairs of a file by split, in which every line can be used.

    Raises:
        MechstudyError: as `read_prompts`; broken lines are listed as ``file:line``, the first ten.
    """
    return read_prompts(PromptSource(Path(path)), encode).pairs


@dataclass(frozen=True)
class Outline:
    """Contents of a file that are known without a tokenizer.

    Attributes:
        n: usable prompts per split.
        positions: names of the positions that all prompts have.
        n_groups: distinct groups per split.
        left_out: number of lines that cannot be used, by defect.
        left_out_lines: the defect of each of them, by line.
        n_lines: lines of the file.
        n_unequal: prompts whose corrupted one has another number of words, and so most likely of tokens, although it
            must have as many.
        remarks: sentences on what is most likely not meant.
        has_corrupted: whether there are corrupted prompts.
    """

    n: Mapping[str, int]
    positions: tuple[str, ...]
    n_groups: Mapping[str, int] = field(default_factory=dict)
    left_out: Mapping[str, int] = field(default_factory=dict)
    left_out_lines: Mapping[int, str] = field(default_factory=dict)
    n_lines: int = 0
    n_unequal: int = 0
    remarks: tuple[str, ...] = ()
    has_corrupted: bool = True


def outline(source: PromptSource) -> Outline:
    """Checks every line as far as possible without a tokenizer, and counts prompts.

    Raises:
        MechstudyError: as `read_prompts`, for errors that do not depend on tokens.
    """
    read = source.read()
    broken = read.broken
    stated = stated_splits(read.rows, broken)
    n_lines = len(read.rows.keys() | broken.keys())
    if broken and source.strict:
        raise report_of(source.path, broken, n_lines)
    rows = {number: row for number, row in read.rows.items() if number not in broken}
    groups = [group_of(row) for row in rows.values()]
    splits = [split_of(group, stated) for group in groups]
    n: dict[str, int] = {split: splits.count(split) for split in SPLITS}
    if broken:
        _require_both(source.path, n, broken, n_lines)
    named = [row["positions"] if isinstance(row.get("positions"), dict) else {} for row in rows.values()]
    common = [name for name in named[0] if all(name in others for others in named)]
    by_group = dict(zip(groups, splits, strict=True))
    texts = [
        Texts(
            str(row.get("id", f"line-{number:04d}")),
            row["clean"],
            tuple(text for key in ANSWERS if key in row for text in texts_of(row[key])),
        )
        for number, row in rows.items()
    ]
    has_corrupted = source.corrupted is not None or all("corrupted" in row for row in rows.values())
    compared = [row for row in rows.values() if "corrupted" in row] if source.align is source.corrupted is None else []
    return Outline(
        n,
        (*common, "last"),
        n_groups={split: list(by_group.values()).count(split) for split in SPLITS},
        left_out=count_kinds(broken),
        left_out_lines={number: error.what for number, error in sorted(broken.items())},
        n_lines=n_lines,
        n_unequal=sum(len(row["clean"].split()) != len(row["corrupted"].split()) for row in compared),
        remarks=tuple(remarks(texts)),
        has_corrupted=has_corrupted,
    )


def outline_jsonl(path: Path) -> Outline:
    """The outline of a file in which every line can be used.

    Raises:
        MechstudyError: as `outline`.
    """
    return outline(PromptSource(path))


def count_kinds(broken: Mapping[int, Broken]) -> dict[str, int]:
    """Number of lines with each defect, the most frequent first."""
    return dict(Counter(error.kind for _, error in sorted(broken.items())).most_common())


def first_lines(defects: Mapping[int, str]) -> str:
    """The first broken lines with their defects: ``line 2: not JSON, line 4: missing answer, and 3 more``."""
    shown = [f"line {number}: {what}" for number, what in list(defects.items())[:MAX_NAMED]]
    more = len(defects) - len(shown)
    return "; ".join(shown) + (f"; and {more} more" if more else "")


def _not_known(
    path: Path,
    rows: Mapping[int, Row],
    strange: Mapping[int, Broken],
    n_lines: int,
    tokens: Tokens,
    unknown: UnknownToken,
) -> MechstudyError:
    """One error for a file of words that the tokenizer has no tokens for."""
    ids = [token for number in strange for token in tokens.own(rows[number]["clean"])]
    first = min(strange)
    return MechstudyError(
        f"{unknown.tokenizer} knows few of the words: {unknown.among(ids) / max(1, len(ids)):.0%} of the tokens of the "
        f"prompts are {unknown.text!r}",
        where=str(path),
        facts={
            "lines": f"{len(strange)} of {n_lines}, with more unknown tokens than others or an unknown answer",
            "example": f"line {first}: {strange[first].what}",
        },
        fix=unknown.fix,
    )


def _require_both(path: Path, n: Mapping[str, int], broken: Mapping[int, Broken], n_lines: int) -> None:
    for split in SPLITS:
        if n[split]:
            continue
        if broken:
            raise report_of(path, broken, n_lines, f", and no {split} prompts are left")
        raise MechstudyError(
            f"no {split} prompts: all {sum(n.values())} are in the other split",
            where=str(path),
            fix=f'write "split": "{split}" on some lines, or add lines of other groups',
        )


def report_of(path: Path, broken: Mapping[int, Broken], n_lines: int, more: str = "") -> MechstudyError:
    """One error for all broken lines; a single one, or the same one on all lines, is reported like any other error."""
    first = min(broken)
    only = broken[first]
    if len(broken) == 1:
        return MechstudyError(only.what, where=f"{path}:{first}", fix=only.fix)
    if len(broken) == n_lines and len({error.what for error in broken.values()}) == 1:
        return MechstudyError(f"{only.what} (on all {n_lines} lines)", where=f"{path}:{first}", fix=only.fix)
    listed = sorted(broken)[:MAX_LISTED]
    if len(broken) > MAX_LISTED:
        more += f"; the first {MAX_LISTED} are"
    return MechstudyError(
        f"{len(broken)} of {n_lines} lines are broken{more}",
        where=str(path),
        facts={f"{path.name}:{number}": f"{broken[number].what}\nfix: {broken[number].fix}" for number in listed},
    )
