"""The attribution graph of one prompt: linearised, then rows computed for the most influential features."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from jaxtyping import Int
from torch import Tensor

from mechstudy.behaviours.contrast import Contrast
from mechstudy.circuits.config import AttributionConfig
from mechstudy.circuits.graph import Graph, LogitNode
from mechstudy.circuits.influence import influence, normalised
from mechstudy.circuits.linearised import LinearisedPrompt, linearise
from mechstudy.circuits.rows import SourceIndex, Target, direct_effects, feature_targets
from mechstudy.circuits.targets import AnswerContrast, Explained, explained_targets, top_logit_targets
from mechstudy.core.errors import MechstudyError
from mechstudy.core.progress import NullProgress, Progress
from mechstudy.dictionaries.dictionary import Dictionary
from mechstudy.machine.runtime import oom_backoff
from mechstudy.models.language_model import LanguageModel

# Below this share of the total influence, the features still without a row cannot matter to a reader.
_NEGLIGIBLE = 0.005


def attribute(
    model: LanguageModel,
    dictionaries: Mapping[int, Dictionary],
    tokens_T: Int[Tensor, " t"],
    config: AttributionConfig,
    *,
    answer: int | None = None,
    wrong_answer: int | None = None,
    explained: Explained | None = None,
    batch_rows: int = 256,
    progress: Progress | None = None,
) -> Graph:
    """The direct-effect graph of one prompt.

    Features get rows in order of their influence through the rows computed so far, ``batch_rows`` at a time, until
    ``config.max_features`` have one or the rest carry a negligible share. Where memory runs out, fewer are computed
    at a time; which are chosen, and in which order, stays the same.

    Args:
        model: weights in fp32 or wider.
        dictionaries: transcoders (``mlp_in`` -> ``mlp_out``) by layer; other layers enter as errors.
        tokens_T: one prompt.
        answer, wrong_answer: first tokens of the two answers, for ``config.target == "logit_difference"``.
        explained: what is explained then, instead of the difference of two logits.

    Returns:
        The unpruned graph. `graph.prune` prunes it, ``scores()`` says how much it explains, `neuronpedia.graph_json`
        makes its file, whose nodes and edges `PromptFrames` lists.

    Raises:
        MechstudyError: an answer is missing, a dictionary is no transcoder of its layer, or weights are below fp32.
    """
    prompt = linearise(model, dictionaries, tokens_T)
    index = SourceIndex(prompt)
    if config.target == "logit_difference":
        if explained is None:
            if answer is None or wrong_answer is None:
                raise MechstudyError("a logit difference needs both answers")
            explained = AnswerContrast(Contrast((answer,), (wrong_answer,)))
        targets, nodes, weights = explained_targets(model, prompt, explained)
    else:
        targets, nodes, weights = top_logit_targets(model, prompt, config.logit_probability, config.max_logits)

    def effects(of: list[Target]) -> Tensor:
        def run(size: int) -> Tensor:
            return torch.cat([direct_effects(prompt, index, of[i : i + size]) for i in range(0, len(of), size)])

        return oom_backoff(run, len(of), progress or NullProgress(), item_tokens=prompt.n_positions)

    rows = [effects(targets)]
    values = [t.value for t in targets]
    columns = [-1] * len(targets)
    layer_of = torch.cat(
        [torch.full((s.stop - s.start,), layer) for layer, s in enumerate(index.feature_slices)]
    ).long()
    pending = torch.ones(index.n_features, dtype=torch.bool)
    kept = torch.ones(index.n_sources, dtype=torch.bool)
    kept[index.biases :] = False
    while (room := min(batch_rows, config.max_features - (len(columns) - len(targets)))) > 0:
        w = torch.cat([weights, weights.new_zeros(len(columns) - len(weights))])
        A_hat_RS = normalised(torch.cat(rows), kept)
        column_R = torch.tensor(columns, device=A_hat_RS.device)
        source_I, _ = influence(A_hat_RS, w.to(A_hat_RS.device), column_R)
        waiting = torch.where(pending, source_I[: index.n_features].cpu(), 0.0)
        if float(waiting.sum()) <= _NEGLIGIBLE * float(source_I.sum()):
            break
        chosen = waiting.topk(min(room, int((waiting > 0).sum()))).indices.sort().values
        batch: list[Target] = []
        for layer in sorted(set(layer_of[chosen].tolist())):
            within = chosen[layer_of[chosen] == layer] - index.feature_slices[layer].start
            batch += feature_targets(prompt, dictionaries, layer, within.tolist())
        rows.append(effects(batch))
        values += [t.value for t in batch]
        columns += chosen.tolist()
        pending[chosen] = False
    summed = config.target == "logit_difference" and len(targets) > 1
    return replace(_assemble(prompt, index, rows, weights, columns, values, nodes, layer_of), summed=summed)


def _assemble(
    prompt: LinearisedPrompt,
    index: SourceIndex,
    rows: list[Tensor],
    weights: Tensor,
    columns: list[int],
    values: list[float],
    nodes: tuple[LogitNode, ...],
    layer_of: Tensor,
) -> Graph:
    active = [x.features for x in prompt.layers if x.features is not None]

    def gathered(name: str, dtype: torch.dtype) -> Tensor:
        parts = [getattr(f, name).cpu() for f in active]
        return torch.cat(parts) if parts else torch.zeros(0, dtype=dtype)

    A = torch.cat(rows).cpu()
    return Graph(
        tokens=tuple(prompt.tokens_T.tolist()),
        index=index,
        A_RS=A,
        weights_R=torch.cat([weights, weights.new_zeros(len(columns) - len(weights))]).to(A),
        column_R=torch.tensor(columns),
        value_R=torch.tensor(values, dtype=torch.float64).to(A),
        logits=nodes,
        feature_layer_S=layer_of,
        feature_position_S=gathered("position_M", torch.long),
        feature_id_S=gathered("feature_M", torch.long),
        activation_S=gathered("value_M", A.dtype),
    )
