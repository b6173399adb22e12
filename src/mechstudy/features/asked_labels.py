"""Labels of features that a model behind an endpoint gave, scored by detection, and the file that keeps them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from mechstudy.core.errors import MechstudyError
from mechstudy.core.jsonio import canonical_json, read_json, write_json_atomic
from mechstudy.core.progress import NullProgress, Progress
from mechstudy.core.seeds import numpy_generator
from mechstudy.features.endpoint import Endpoint, one_line
from mechstudy.features.questions import LONGEST, chosen_in, detection_question, label_in, label_question, text_of

ASKED = "asked_labels.json"  # in a run's folder
FEWEST = 3  # texts of each kind that a score needs
MOST = 8  # texts on which the feature fires, in a question
_SCHEMA = 1

Page = Mapping[str, Any]


@dataclass(frozen=True)
class AskedLabel:
    """What a model behind an endpoint says that a feature responds to, and how well the same model can use that.

    Attributes:
        label: one line; another program's text.
        model: its name at the endpoint, which is also the judge of the scores.
        page: identifies the texts and tokens that it was made from.
        score: balanced accuracy on texts that it was not made from; None with fewer than `FEWEST` texts of either kind,
            or without a usable answer. Chance is .5.
        shuffled: that of another feature's label on the same texts.
        n_fires: texts on which the feature fires.
        n_other: other texts.
        n_same_word: of the other texts, those with a token on which the feature peaks elsewhere.
    """

    label: str
    model: str
    page: str
    score: float | None = None
    shuffled: float | None = None
    n_fires: int = 0
    n_other: int = 0
    n_same_word: int = 0


def name_of(page: Page) -> str:
    """``13/1741``."""
    return f"{page['layer']}/{page['feature']}"


def influence_of(page: Page) -> float:
    """The largest influence of a feature in a graph of its run."""
    return max((float(graph.get("influence") or 0) for graph in (page.get("graphs") or {}).values()), default=0.0)


def page_id(page: Page) -> str:
    """Identifies what a page says that questions use: 16 hexadecimal digits."""
    used = {"examples": _all_examples(page), "promotes": page.get("top_logits") or []}
    return hashlib.sha256(canonical_json(used).encode()).hexdigest()[:16]


def ask_labels(
    endpoint: Endpoint,
    pages: Sequence[Page],
    chosen: Iterable[str],
    kept: Mapping[str, AskedLabel],
    keep: Callable[[Mapping[str, AskedLabel]], None],
    *,
    seed: int = 0,
    progress: Progress | None = None,
) -> dict[str, AskedLabel]:
    """Labels of some features of a run, each scored by detection on texts that it was not made from.

    The endpoint is shown every other one of a feature's strongest examples, and the tokens that the feature promotes,
    and asked for a label. It is scored on up to `MOST` of the other examples, those of weaker activation too where the
    page has some, from documents that were not shown: these and as many windows of other features' examples are
    shuffled, and the endpoint is asked which of them fit the label. Another feature's label is judged on the same
    texts.

    What is known of the other windows: they are of documents that are not among the feature's own examples. What is not
    known: that the feature is silent on them. Since a page's examples are the documents of largest activation, it is no
    stronger there than in the weakest of them; a feature that is active on many tokens fires on some of them, and a
    right label then scores lower than it should. ``n_same_word`` counts windows where that is most likely.

    Args:
        endpoint: who is asked, and who judges.
        pages: all of the run, as `feature_pages` returns them.
        chosen: names of features to label, in the order in which they are asked for.
        kept: labels of an earlier call: what they have is not asked again if model and page are the same.
        keep: receives all labels after each answer.
        seed: of the windows, their order, and whose label is the other one.
        progress: receives progress.

    Returns:
        ``kept`` with the new labels. Features without examples, and those whose answer says nothing, have none.

    Raises:
        MechstudyError: the endpoint fails (see `Endpoint.ask`); what was answered before is kept.
    """
    progress, by_name, made = progress or NullProgress(), {name_of(page): page for page in pages}, dict(kept)
    ids = {name: page_id(by_name[name]) for name in chosen}
    names = [name for name in ids if by_name[name].get("examples")]
    current = {n: one for n, one in made.items() if n in ids and (one.model, one.page) == (endpoint.model, ids[n])}
    unlabelled = [name for name in names if name not in current]
    with progress.bar("labels", len(names), "features", done=len(names) - len(unlabelled)) as bar:
        for name in unlabelled:
            label = label_in(endpoint.ask(label_question(by_name[name], _shown(by_name[name]))))
            if label is not None:
                made[name] = current[name] = AskedLabel(label, endpoint.model, ids[name])
                keep(made)
            bar.advance(1)
    texts = sorted({one.label for one in made.values() if one.model == endpoint.model})
    unscored = [n for n, one in current.items() if one.score is None or (one.shuffled is None and len(texts) > 1)]
    with progress.bar("scores", len(current), "labels", done=len(current) - len(unscored)) as bar:
        for name in unscored:
            rivals = [text for text in texts if text != current[name].label]
            made[name] = _scored(endpoint, current[name], by_name[name], pages, rivals, seed)
            keep(made)
            bar.advance(1)
    return made


def _scored(
    endpoint: Endpoint, own: AskedLabel, page: Page, pages: Sequence[Page], rivals: Sequence[str], seed: int
) -> AskedLabel:
    """A label with its scores; one of the rivals is the other feature's."""
    rng = numpy_generator(seed, "asked labels", name_of(page))
    fires, pool = _held_out(page), _other_windows(page, pages)
    if len(fires) > MOST:
        fires = [fires[int(i)] for i in rng.choice(len(fires), MOST, replace=False)]
    n_other = min(len(pool), len(fires))
    if min(len(fires), n_other) < FEWEST:
        return own
    others = [pool[int(i)] for i in rng.choice(len(pool), n_other, replace=False)]
    rival = rivals[int(rng.integers(len(rivals)))] if rivals else None
    order = rng.permutation(len(fires) + n_other).tolist()
    texts = [*fires, *(text for text, _ in others)]
    shuffled_texts, right = [texts[i] for i in order], {place for place, i in enumerate(order) if i < len(fires)}

    def score(label: str) -> float | None:
        chosen = chosen_in(endpoint.ask(detection_question(label, shuffled_texts)), len(texts))
        if chosen is None:
            return None
        return (len(chosen & right) / len(right) + 1 - len(chosen - right) / n_other) / 2

    peaks = {_word(example["tokens"][example["peak"]]) for example in _all_examples(page)}
    return replace(
        own,
        score=score(own.label),
        shuffled=None if rival is None else score(rival),
        n_fires=len(fires),
        n_other=n_other,
        n_same_word=sum(bool(peaks & words) for _, words in others),
    )


def _all_examples(page: Page) -> list[Any]:
    """The strongest examples, then those drawn from intervals of the activations, where the page has some."""
    drawn = [example for interval in page.get("intervals") or () for example in interval["examples"]]
    return [*(page.get("examples") or ()), *drawn]


def _shown(page: Page) -> list[Any]:
    """Examples that a label is made from."""
    return list(page["examples"][::2])


def _held_out(page: Page) -> list[str]:
    """Different texts of documents that were not shown, without texts that were."""
    documents = {example.get("document") for example in _shown(page)}
    texts = {text_of(example) for example in _shown(page)}
    others = (text_of(example) for example in _all_examples(page) if example.get("document") not in documents)
    return [text for text in dict.fromkeys(others) if text not in texts]


def _other_windows(page: Page, pages: Iterable[Page]) -> list[tuple[str, set[str]]]:
    """Different texts of other features' examples from documents that the feature's page does not have, with words."""
    own = {example.get("document") for example in _all_examples(page)}
    texts = {text_of(example) for example in _all_examples(page)}
    found = {
        text: {_word(token) for token in example["tokens"]}
        for other in pages
        if other is not page
        for example in other.get("examples") or ()
        if example.get("document") not in own and (text := text_of(example)) not in texts
    }
    return list(found.items())


def _word(token: object) -> str:
    return str(token).strip().lower() or str(token)


def write_asked(file: Path, labels: Mapping[str, AskedLabel]) -> None:
    """Write labels by feature, in the order of layers and numbers.

    Raises:
        MechstudyError: the file cannot be written.
    """
    ordered = sorted(labels, key=lambda name: tuple(map(int, name.split("/"))))
    rows = {
        name: {k: round(v, 4) if isinstance(v, float) else v for k, v in asdict(labels[name]).items()}
        for name in ordered
    }
    write_json_atomic(file, {"schema": _SCHEMA, "labels": rows})


def read_asked(file: Path) -> dict[str, AskedLabel]:
    """Labels by feature; none where there is no file.

    Raises:
        MechstudyError: the file is not one of `write_asked`.
    """
    if not file.exists():
        return {}
    content = read_json(file)
    try:
        if content["schema"] != _SCHEMA:
            raise ValueError
        known = {field.name for field in fields(AskedLabel)}
        made = {
            str(name): AskedLabel(**{k: v for k, v in row.items() if k in known})
            for name, row in content["labels"].items()
        }
        return {
            "{}/{}".format(*map(int, name.split("/"))): replace(one, label=one_line(str(one.label), LONGEST))
            for name, one in made.items()
        }
    except (KeyError, TypeError, AttributeError, ValueError, IndexError):
        raise MechstudyError(
            "these are no labels that `mechstudy label` wrote", where=str(file), fix="another file, or delete this one"
        ) from None
