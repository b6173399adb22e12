"""Sentences of a plan on published dictionaries: other models, and sites that nobody states. Torch-free."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from mechstudy.models.known import same_model
from mechstudy.study.published import FIELD, Published


def published_notes(found: Sequence[Published], model: Iterable[str]) -> Iterator[str]:
    """Sentences on dictionaries that name another model than the study's, and on sites that are only assumed.

    Args:
        found: the study's dictionaries.
        model: the model's names: of its source, its folder and its config.
    """
    names = [name for name in dict.fromkeys(model) if name]
    by_maker: dict[str, list[int]] = {}
    for one in found:
        made_for = str(one.about.get("model") or "")
        if made_for and not any(same_model(made_for, name) for name in names):
            by_maker.setdefault(made_for, []).append(one.layer)
    for made_for, layers in by_maker.items():
        yield (
            f"{FIELD}: made for {made_for}, by their own files, and this model is {' or '.join(names)}"
            f" ({_layers(layers)}); FVU and loss recovered show whether they fit"
        )
    if assumed := [one for one in found if one.sites.endswith("(assumed)")]:
        kinds = ", ".join(dict.fromkeys(one.site_in.partition(".")[0] for one in assumed))
        yield (
            f"{FIELD}: neither the files nor their folders name a site, so {kinds} is assumed"
            f" ({_layers([one.layer for one in assumed])}); dictionaries.site says otherwise"
        )


def _layers(layers: Sequence[int]) -> str:
    return f"layer{'s' * (len(layers) > 1)} {', '.join(map(str, layers))}"
