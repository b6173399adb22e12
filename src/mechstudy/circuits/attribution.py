"""The attribution graph of one prompt: linearised, then rows computed for the most influential features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Generic, Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechstudy.behaviours.contrast import Contrast
from mechstudy.circuits.bases import has_saes
from mechstudy.circuits.choose_neurons import choose_neurons
from mechstudy.circuits.config import AttributionConfig
from mechstudy.circuits.graph import Graph, LogitNode
from mechstudy.circuits.influence import influence, row_sums
from mechstudy.circuits.linear_prompt import LinearisedPrompt
from mechstudy.circuits.linearised import linearise
from mechstudy.circuits.rows import SourceIndex, Target, direct_effects, feature_targets
from mechstudy.circuits.targets import AnswerContrast, Explained, explained_targets, top_logit_targets
from mechstudy.core.errors import MechstudyError
from mechstudy.core.progress import NullProgress, Progress
from mechstudy.dictionaries.neurons import Basis
from mechstudy.machine.runtime import oom_backoff
from mechstudy.models.language_model import LanguageModel

# Below this share of the total influence, the features still without a row cannot matter to a reader.
_NEGLIGIBLE = 0.005
_ROWS_AT_ONCE = 128


def attribute(
    model: LanguageModel,
    bases: Mapping[int, Basis],
    tokens_T: Int[Tensor, " t"],
    config: AttributionConfig,
    *,
    answer: int | None = None,
    wrong_answer: int | None = None,
    explained: Explained | None = None,
    first_is_constant: bool = True,
    batch_rows: int = 256,
    progress: Progress | None = None,
) -> Graph:
    """The direct-effect graph of one prompt.

    Features get rows in order of their influence through the rows computed so far, ``batch_rows`` at a time, until
    ``config.max_features`` have one or the rest carry a negligible share. Where memory runs out, fewer are computed
    at a time; which are chosen, and in which order, stays the same.

    Args:
        model: weights in fp32 or wider.
        bases: dictionaries or neurons by layer; ``config.elsewhere`` says what the MLPs of other layers are.
        tokens_T: one prompt.
        answer, wrong_answer: first tokens of the two answers, for ``config.target == "logit_difference"``.
        explained: what is explained then, instead of the difference of two logits.
        first_is_constant: what the first position writes and no dictionary explains, and its neurons, are biases, as
            they are the same in every prompt with that first token.

    Returns:
        The unpruned graph. `graph.prune` prunes it, ``scores()`` says how much it explains, `neuronpedia.graph_json`
        makes its file, whose nodes and edges `PromptFrames` lists.

    Raises:
        MechstudyError: an answer is missing, a dictionary is of another site or layer, or weights are below fp32.
    """
    elsewhere = config.elsewhere_of(has_saes(bases))
    prompt = linearise(model, bases, tokens_T, elsewhere=elsewhere, first_is_constant=first_is_constant)
    if config.target == "logit_difference":
        if explained is None:
            if answer is None or wrong_answer is None:
                raise MechstudyError("a logit difference needs both answers")
            explained = AnswerContrast(Contrast((answer,), (wrong_answer,)))
        targets, nodes, weights = explained_targets(model, prompt, explained)
    else:
        targets, nodes, weights = top_logit_targets(model, prompt, config.logit_probability, config.max_logits)
    [prompt] = choose_neurons([prompt], [targets], weights, config.n_neurons)
    rows = GrowingRows(PromptRows(prompt), targets, weights, config.max_features, batch_rows, progress)
    graph = rows.graph(nodes, summed=config.target == "logit_difference" and len(targets) > 1)
    return replace(graph, prompt=prompt, targets=tuple(rows.targets))


@runtime_checkable
class RowTarget(Protocol):
    """What a row explains: where it is read, and its value."""

    @property
    def layer(self) -> int:
        """The layer whose nodes' site is read, or the number of layers."""

    @property
    def position(self) -> int:
        """The token position."""

    @property
    def value(self) -> float:
        """What the row adds up to."""


T = TypeVar("T", bound=RowTarget)


@runtime_checkable
class RowMaker(Protocol[T]):
    """Computes rows of direct effects."""

    @property
    def prompt(self) -> LinearisedPrompt:
        """The sources."""

    def targets(self, layer: int, which_M: Sequence[int]) -> list[T]:
        """What some nodes of a layer read."""

    def effects(self, index: SourceIndex, targets: Sequence[T]) -> Float[Tensor, "r s"]:
        """The rows of some targets."""


@dataclass(frozen=True)
class PromptRows:
    """Rows of one linearised prompt."""

    prompt: LinearisedPrompt

    def targets(self, layer: int, which_M: Sequence[int]) -> list[Target]:
        """As `feature_targets`."""
        return feature_targets(self.prompt, layer, which_M)

    def effects(self, index: SourceIndex, targets: Sequence[Target]) -> Float[Tensor, "r s"]:
        """As `direct_effects`."""
        return direct_effects(self.prompt, index, targets)


class GrowingRows(Generic[T]):
    """The rows of some targets, then those of the features that most influence passes, ``batch_rows`` at a time.

    Features are added until ``max_features`` have a row, or the rest carry a negligible share of the influence.
    """

    def __init__(
        self,
        maker: RowMaker[T],
        targets: Sequence[T],
        weights: Tensor,
        max_features: int,
        batch_rows: int,
        progress: Progress | None = None,
    ) -> None:
        self.maker, self.progress = maker, progress or NullProgress()
        prompt = maker.prompt
        self.prompt, self.index = prompt, SourceIndex(prompt)
        like, index = prompt.tokens_TD, self.index
        self.n_targets, self.n = len(targets), 0
        n_rows = len(targets) + min(max_features, index.n_features)
        self.A_RS = like.new_empty(n_rows, index.n_sources)
        self.sums_R = like.new_zeros(n_rows)
        self.weights_R = torch.cat([weights.to(like), like.new_zeros(n_rows - len(targets))])
        self.column_R = torch.full((n_rows,), -1, device=like.device)
        self.value_R = torch.zeros(n_rows, dtype=torch.float64)
        parts = [torch.full((s.stop - s.start,), layer) for layer, s in enumerate(index.feature_slices)]
        self.layer_of = torch.cat(parts).long()
        self.pending = torch.ones(index.n_features, dtype=torch.bool)
        self.kept_S = torch.ones(index.n_sources, dtype=torch.bool, device=like.device)
        self.kept_S[index.biases :] = False
        self.targets: list[T] = []
        self._append(targets)
        while self.room > 0 and len(chosen := self.most_influential(batch_rows)):
            self.add(chosen)

    @property
    def room(self) -> int:
        """How many more features may get a row."""
        return len(self.A_RS) - self.n

    def most_influential(self, most: int) -> Tensor:
        """Columns of the features without a row that have most influence; none if what they have is negligible."""
        n = self.n
        source_I, _ = influence(self.A_RS[:n], self.kept_S, self.weights_R[:n], self.column_R[:n], self.sums_R[:n])
        waiting = torch.where(self.pending, source_I[: self.index.n_features].cpu(), 0.0)
        if float(waiting.sum()) <= _NEGLIGIBLE * float(source_I.sum()):
            return torch.zeros(0, dtype=torch.long)
        n_chosen = min(most, self.room, int((waiting > 0).sum()))
        return waiting.topk(n_chosen).indices.sort().values

    def add(self, columns: Tensor) -> None:
        """Computes the rows of some features."""
        batch: list[T] = []
        for layer in sorted(set(self.layer_of[columns].tolist())):
            within = columns[self.layer_of[columns] == layer] - self.index.feature_slices[layer].start
            batch += self.maker.targets(layer, within.tolist())
        self.column_R[self.n : self.n + len(columns)] = columns.to(self.column_R)
        self.pending[columns] = False
        self._append(batch)

    def _append(self, targets: Sequence[T]) -> None:
        rows = self.A_RS[self.n : self.n + len(targets)]
        # Rows of near positions together: positions after a row's own are left out of its batch.
        order = sorted(range(len(targets)), key=lambda i: targets[i].position)

        def run(size: int) -> None:
            for start in range(0, len(order), size):
                part = sorted(order[start : start + size], key=lambda i: -targets[i].layer)  # as they are computed
                rows[torch.tensor(part, device=rows.device)] = self.maker.effects(
                    self.index, [targets[i] for i in part]
                )

        oom_backoff(run, min(len(order), _ROWS_AT_ONCE), self.progress, item_tokens=self.prompt.n_positions)
        self.targets += targets
        there = slice(self.n, self.n + len(targets))
        self.sums_R[there] = row_sums(rows, self.kept_S)
        self.value_R[there] = torch.tensor([t.value for t in targets], dtype=torch.float64)
        self.n = there.stop

    def graph(self, nodes: tuple[LogitNode, ...], summed: bool) -> Graph:
        """The graph of what has been computed."""
        active = [x.nodes for x in self.prompt.layers if x.nodes is not None]

        def gathered(name: str, dtype: torch.dtype) -> Tensor:
            parts = [getattr(f, name).cpu() for f in active]
            return torch.cat(parts) if parts else torch.zeros(0, dtype=dtype)

        A = self.A_RS[: self.n].cpu()
        return Graph(
            tokens=tuple(self.prompt.tokens_T.tolist()),
            index=self.index,
            A_RS=A,
            weights_R=self.weights_R[: self.n].to(A),
            column_R=self.column_R[: self.n].cpu(),
            value_R=self.value_R[: self.n].to(A),
            logits=nodes,
            feature_layer_S=self.layer_of,
            feature_position_S=gathered("position_M", torch.long),
            feature_id_S=gathered("feature_M", torch.long),
            activation_S=gathered("value_M", A.dtype),
            summed=summed,
        )
