"""The verdict on a circuit, from text in to objects out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from mechstudy import verdict
from mechstudy.behaviours.prompts import checked_pairs
from mechstudy.behaviours.schema import PromptPair
from mechstudy.circuits.bases import chosen_bases
from mechstudy.circuits.config import BasisKind
from mechstudy.dictionaries.fitted import all_fitted
from mechstudy.dictionaries.neurons import Basis
from mechstudy.models.language_model import LanguageModel
from mechstudy.verdict.config import VerdictConfig


def verify(
    model: LanguageModel,
    train: Iterable[PromptPair],
    test: Iterable[PromptPair],
    *,
    dictionaries: Mapping[int, Basis] | None = None,
    basis: BasisKind | None = None,
    others: Mapping[str, Sequence[PromptPair]] | None = None,
    texts: Sequence[str] = (),
    variants: Mapping[str, Mapping[int, Basis]] | None = None,
    controls: Mapping[str, Mapping[int, Basis]] | None = None,
    config: VerdictConfig | None = None,
    batch_tokens: int = 4096,
) -> verdict.Verdict:
    """Choose a behaviour's circuit on train prompts, and judge it on test prompts.

        found = ms.verify(model, train, test, dictionaries=dicts, others={"ioi": ioi_test})
        found.outcome, found.frame, found.members

    Args:
        model: the model.
        train: prompts that the circuit is chosen on.
        test: prompts that it is judged on; none of ``train``.
        dictionaries: whose features are nodes, beside heads and the MLPs of other layers; by default there are none.
        basis: ``neurons``, or ``mixed`` with dictionaries; by default the dictionaries.
        others: test prompts of other behaviours, on which the circuit should do little.
        texts: other text, on which it should do little too; cut to the length of the shortest.
        variants: other dictionaries of the same layers, by name: does the same procedure find a circuit with them?
        controls: the same with a frozen random part, which should explain less.
        config: number of prompts, thresholds, and the rest.
        batch_tokens: tokens run at a time.

    Raises:
        MechstudyError: no prompts, prompts that are among both, or dictionaries of another model.
    """
    bases: Mapping[int, Basis] = {}
    if dictionaries is not None or basis is not None:
        bases = chosen_bases(model, all_fitted(model, {} if dictionaries is None else dictionaries), basis)
    others_by_name = {
        name: verdict.Variant(all_fitted(model, layers), frozen)
        for some, frozen in ((variants, False), (controls, True))
        for name, layers in (some or {}).items()
    }
    encoded = [model.encode(text) for text in texts]
    shortest = min((len(row) for row in encoded), default=0)
    return verdict.verify(
        model,
        bases,
        checked_pairs(train),
        checked_pairs(test),
        config,
        others=others,
        texts=[row[:shortest] for row in encoded],
        variants=others_by_name,
        batch_tokens=batch_tokens,
    )
