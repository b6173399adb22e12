"""What is known of one feature: label, density, activations, promoted and suppressed tokens, examples, circuits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mechstudy.api.dictionaries import load_dictionaries
from mechstudy.api.runs import Run
from mechstudy.circuits.bases import chosen_bases
from mechstudy.circuits.config import BasisKind
from mechstudy.circuits.named_positions import ALL
from mechstudy.core.errors import MechstudyError
from mechstudy.dictionaries.fitted import all_fitted
from mechstudy.dictionaries.loading import Place
from mechstudy.dictionaries.neurons import Basis, Neurons
from mechstudy.features.asked_labels import AskedLabel, name_of
from mechstudy.features.examples import logit_effects
from mechstudy.interventions.features import check_features, feature_at
from mechstudy.models.language_model import LanguageModel
from mechstudy.report.viewer import auto_label
from mechstudy.study.finished import is_run

_NEURONS = "neurons"


@dataclass(frozen=True)
class FeatureCard:
    """One feature, and what a run or a model says of it.

    ``site_in`` and ``site_out`` are what its dictionary reads and writes, ``n_features`` how many it has. Of a run, for
    the features of its graphs: ``density`` (share of the corpus' tokens on which it is active), ``mean_activation``
    over these, ``max_activation``, ``examples`` ({tokens, activations, peak, document}, the strongest first) and
    ``graphs`` (behaviour -> influence, frequency, total_effect, positions); else None and empty. ``promotes`` and
    ``suppresses`` are (token, logit) by the direct path to the output, comparable within a feature; empty where neither
    the run nor a model gives them. ``label`` is a summary by machine: what it fires on and the token that it promotes
    most. ``rule`` is the rule of what it fires on with its scores (see `Label`); None where none was made. ``asked`` is
    the label that an endpoint gave (see `ask_labels`): label, model, score, shuffled and counts; None without one.

    ``histogram`` ({bin_width, positive, negative}) counts activations in bins from zero up, and those of a neuron from
    zero down. ``intervals`` ({low, high, count, examples}, the highest first) split their range, with examples that are
    drawn at random. None and empty for runs of earlier versions.
    """

    feature: str
    kind: str
    site_in: str
    site_out: str
    n_features: int | None
    label: str
    density: float | None = None
    mean_activation: float | None = None
    max_activation: float | None = None
    promotes: tuple[tuple[str, float], ...] = ()
    suppresses: tuple[tuple[str, float], ...] = ()
    examples: tuple[Mapping[str, Any], ...] = field(default=(), repr=False)
    graphs: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    rule: Mapping[str, Any] | None = None
    histogram: Mapping[str, Any] | None = None
    intervals: tuple[Mapping[str, Any], ...] = field(default=(), repr=False)
    asked: Mapping[str, Any] | None = None

    def as_json(self) -> dict[str, Any]:
        """Every field, as JSON has it."""
        return asdict(self)


def describe_feature(
    feature: str | tuple[int, int],
    dictionaries: Run | Place | Mapping[int, Basis] | None = None,
    *,
    model: LanguageModel | None = None,
    basis: BasisKind | None = None,
    n_tokens: int = 10,
) -> FeatureCard:
    """What a run or a set of dictionaries knows of a feature, and which tokens it promotes.

        ms.describe_feature("13/1741", "runs/demo")
        ms.describe_feature("13/1741", dicts, model=model)
        ms.describe_feature("13/741", model=model)  # a neuron

    Args:
        feature: ``"13/1741"``, or the two numbers.
        dictionaries: a run, whose record of the feature is read; whatever `load_dictionaries` takes; or dictionaries by
            layer. None are needed for neurons.
        model: computes promoted and suppressed tokens where a run has not recorded them.
        basis: ``neurons``, or ``mixed`` for neurons in layers without a dictionary; by default the dictionaries, or
            neurons where there are none.
        n_tokens: tokens promoted, and as many suppressed.

    Raises:
        MechstudyError: no such feature, one with a position, or neither dictionaries nor a model.
    """
    at = feature_at(feature)
    if at.position != ALL:
        raise MechstudyError(f"{feature}: a feature is described wherever it is", fix=f'"{at.layer}/{at.feature}"')
    run, by_layer = _opened(dictionaries)
    page = _page_of(run, at.layer, at.feature)
    asked = run.asked_labels.get(name_of(page)) if run is not None and page else None
    if run is not None and at.layer not in by_layer and page.get("kind") == _NEURONS:
        site = f"mlp_act.{at.layer}"
        return _card(page, asked, f"{at.layer}/{at.feature}", _NEURONS, site, site, None, n_tokens)
    if model is not None:
        by_layer = chosen_bases(model, all_fitted(model, by_layer), basis)
    elif not by_layer:
        raise MechstudyError(
            "neither dictionaries nor a model",
            fix='dictionaries="runs/demo", or model=..., whose neurons are described',
        )
    check_features([at], by_layer)
    one = by_layer[at.layer]
    if isinstance(one, Neurons) != (page.get("kind", one.cfg.kind) == _NEURONS):
        page, asked = {}, None  # of another basis
    if model is not None and len(page.get("top_logits") or ()) < n_tokens:
        page = {**page, **logit_effects(model, one, [at.feature], n_tokens)[0]}
    name, cfg = f"{at.layer}/{at.feature}", one.cfg
    return _card(page, asked, name, cfg.kind, cfg.site_in, " ".join(one.sites_out), cfg.d_sae, n_tokens)


def _opened(source: Run | Place | Mapping[int, Basis] | None) -> tuple[Run | None, Mapping[int, Basis]]:
    if source is None:
        return None, {}
    if isinstance(source, Mapping):
        return None, source
    if not isinstance(source, Run) and isinstance(source, str | Path) and is_run(Path(source).expanduser()):
        source = Run(Path(source).expanduser())
    if isinstance(source, Run):
        return source, source.dictionaries
    return None, load_dictionaries(source, lazy=True)


def _page_of(run: Run | None, layer: int, number: int) -> Mapping[str, Any]:
    pages: Sequence[Mapping[str, Any]] = () if run is None else run.feature_pages
    return next((page for page in pages if (page["layer"], page["feature"]) == (layer, number)), {})


def _card(
    page: Mapping[str, Any],
    asked: AskedLabel | None,
    name: str,
    kind: str,
    site_in: str,
    site_out: str,
    n_features: int | None,
    n_tokens: int,
) -> FeatureCard:
    promotes, suppresses = (
        tuple((str(row["token"]), float(row["value"])) for row in (page.get(which) or ())[:n_tokens])
        for which in ("top_logits", "bottom_logits")
    )
    return FeatureCard(
        name,
        kind,
        site_in,
        site_out,
        n_features,
        auto_label(page),
        page.get("frequency"),
        page.get("mean_activation"),
        page.get("max_activation"),
        promotes,
        suppresses,
        tuple(page.get("examples") or ()),
        page.get("graphs") or {},
        page.get("label"),
        page.get("histogram"),
        tuple(page.get("intervals") or ()),
        None if asked is None else asdict(asked),
    )
