"""Text generation with features steered: decoder vectors added at every position that is read."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from mechstudy.circuits.bases import chosen_bases
from mechstudy.circuits.config import BasisKind
from mechstudy.circuits.named_positions import ALL
from mechstudy.core.errors import MechstudyError
from mechstudy.dictionaries.dictionary import Dictionary
from mechstudy.dictionaries.hookpoints import refuse_other_tensor
from mechstudy.dictionaries.neurons import Basis
from mechstudy.interventions.features import check_features, feature_at
from mechstudy.models.language_model import LanguageModel
from mechstudy.models.sites import Site


def generate(
    model: LanguageModel,
    prompt: str,
    *,
    steer: Mapping[str | tuple[int, int], float] | None = None,
    dictionaries: Mapping[int, Basis] | None = None,
    basis: BasisKind | None = None,
    max_new_tokens: int = 40,
    temperature: float = 0.0,
    seed: int = 0,
    instruction: str | None = None,
) -> str:
    """The text that follows a prompt, up to the model's end of text.

        ms.generate(model, "I think that")
        ms.generate(model, "I think that", steer={"13/1741": 8.0}, dictionaries=dicts)
        ms.generate(model, "I think that", steer={"13/741": 8.0}, basis="neurons")

    Args:
        model: of any precision.
        prompt: text that is not empty.
        steer: see `generate_tokens`, as are the other arguments.
        instruction: the user's turn of the model's chat template, which the prompt then begins to answer.

    Raises:
        MechstudyError: an empty prompt; and as `generate_tokens`.
    """
    tokens = model.encode(prompt, instruction=instruction) if prompt else []
    if not tokens:
        raise MechstudyError("the prompt is empty", fix='a text such as "I think that"')
    new = generate_tokens(
        model,
        tokens,
        steer=steer,
        dictionaries=dictionaries,
        basis=basis,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        stop=_end_tokens(model),
        seed=seed,
    )
    # Decoded together with the prompt, so that the first new token keeps its leading space.
    before: str = model.tokenizer.decode(tokens, skip_special_tokens=True)
    after: str = model.tokenizer.decode([*tokens, *new], skip_special_tokens=True)
    return after.removeprefix(before)


@torch.no_grad()
def generate_tokens(
    model: LanguageModel,
    tokens: Sequence[int],
    *,
    steer: Mapping[str | tuple[int, int], float] | None = None,
    dictionaries: Mapping[int, Basis] | None = None,
    basis: BasisKind | None = None,
    max_new_tokens: int = 20,
    temperature: float = 0.0,
    stop: Sequence[int] = (),
    seed: int = 0,
) -> list[int]:
    """The token ids that follow ``tokens``, greedily or sampled.

    Every step is a whole forward pass through the same edits as interventions; nothing is cached between steps.

    Args:
        steer: by feature (``"13/1741"`` or ``(13, 1741)``), the activation added to it at every position but the
            first: that times its decoder row is added to the site that its dictionary writes (of a cross-layer
            transcoder, in each layer that the feature writes to).
        dictionaries: by layer, for ``steer``.
        basis: ``neurons`` steers neurons of MLPs instead, by adding to what they hold; ``mixed`` those of layers
            without a dictionary.
        temperature: 0 takes the most probable token; otherwise tokens are drawn, with ``seed``.
        stop: token ids after which nothing follows (such as the end-of-text token), kept in the result.

    Raises:
        MechstudyError: a feature that no dictionary has, or a dictionary of another tensor (see `hookpoints`); no
            tokens.
    """
    if not tokens:
        raise MechstudyError("there are no tokens to continue")
    if max_new_tokens < 1 or not 0 <= temperature < math.inf:
        raise MechstudyError(
            "max_new_tokens is at least 1, and temperature at least 0",
            facts={"max_new_tokens": str(max_new_tokens), "temperature": str(temperature)},
            fix="max_new_tokens=20, temperature=0.0",
        )
    bases = dictionaries or {}
    if steer and basis is not None:
        bases = chosen_bases(model, bases, basis)
    edits = {site: _added(vector_D) for site, vector_D in steering_vectors(bases, steer or {}).items()}
    for layer in {feature_at(name).layer for name in steer or {}}:
        if isinstance(chosen := bases[layer], Dictionary):  # not neurons
            refuse_other_tensor(model, chosen)
    generator = torch.Generator().manual_seed(seed)
    ids = list(tokens)
    for _ in range(max_new_tokens):
        logits = model.forward(torch.tensor([ids]), edits=edits).logits
        assert logits is not None
        if temperature > 0:
            probabilities_V = torch.softmax(logits[0].double().cpu() / temperature, -1)
            ids.append(int(torch.multinomial(probabilities_V, 1, generator=generator)))
        else:
            ids.append(int(logits[0].argmax()))
        if ids[-1] in stop:
            break
    return ids[len(tokens) :]


def steering_vectors(
    dictionaries: Mapping[int, Basis], steer: Mapping[str | tuple[int, int], float]
) -> dict[Site, Float[Tensor, " d"]]:
    """Per site, the sum of strength x decoder row over the features that write there.

    Raises:
        MechstudyError: a feature that no dictionary has, or one at a named position.
    """
    vectors: dict[Site, Tensor] = {}
    for name, strength in steer.items():
        feature = feature_at(name)
        if isinstance(strength, str) or not math.isfinite(strength):
            raise MechstudyError(f"{name} is steered by {strength!r}, not a finite number", fix=f'{{"{name}": 8.0}}')
        check_features([feature], dictionaries)
        if feature.position != ALL:
            raise MechstudyError(
                f"{name}: generated text has no named positions", fix=f'"{feature.layer}/{feature.feature}"'
            )
        dictionary = dictionaries[feature.layer]
        for name_out, rows in zip(dictionary.sites_out, dictionary.writes([feature.feature]), strict=True):
            site, written_D = Site.parse(name_out), strength * rows[0]
            vectors[site] = vectors[site] + written_D if site in vectors else written_D
    return vectors


def _added(vector_D: Tensor) -> Callable[[Tensor], Tensor]:
    def edit(x_BTD: Tensor) -> Tensor:
        steered = x_BTD.clone()
        steered[:, 1:] += vector_D.to(x_BTD)
        return steered

    return edit


def _end_tokens(model: LanguageModel) -> list[int]:
    config = getattr(model.hf, "generation_config", None)
    ends = getattr(config, "eos_token_id", None)
    own = getattr(model.tokenizer, "eos_token_id", None)
    return [*([ends] if isinstance(ends, int) else ends or []), *([own] if own is not None else [])]
