"""What a changed source does to the targets of its edges on one prompt: predicted by the graph, and measured.

Direct effects hold all other nodes at their clean values, as an edge means it. ``frozen``: patterns, scales of norms,
gates and MLPs that are no nodes are those of the linear model, so that it must equal the value edge. ``qk``: what is
added where patterns follow what reaches their queries and keys, along paths with one score, which QK edges predict to
first order. ``direct_live``: nothing but the nodes is held (path patching, Goldowsky-Dill et al. 2304.05969); beyond
``frozen`` and ``qk`` it has paths through several scores, what the change does to norms' scales, and nonlinear
functions. ``total_live``: other nodes respond too, so that every indirect path counts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mechstudy.behaviours.contrast import Contrast, WholeAnswers
from mechstudy.circuits.active_nodes import ActiveNeurons
from mechstudy.circuits.bases import site_read
from mechstudy.circuits.choose_neurons import only_neurons
from mechstudy.circuits.config import Elsewhere
from mechstudy.circuits.frozen import Delta, FrozenForward, FrozenOutput
from mechstudy.circuits.linearised import linearise
from mechstudy.circuits.question import Question
from mechstudy.circuits.rows import SourceIndex, Target, direct_effects
from mechstudy.circuits.score_rows import score_effects
from mechstudy.core.progress import NullProgress, Progress
from mechstudy.dictionaries.neurons import Basis
from mechstudy.interventions.engine import RowEdit, SetFeature
from mechstudy.interventions.features import FeatureAt
from mechstudy.interventions.results import Cell
from mechstudy.interventions.runner import EditedRows, Suite, Values
from mechstudy.machine.runtime import oom_backoff
from mechstudy.models.language_model import LanguageModel
from mechstudy.models.query_key import NotAffine, query_keys

ROWS = 16  # changed sources that run together, from the lowest of their layers


@dataclass(frozen=True)
class SourceChange:
    """An intervention of the runner: one edge's source set to other values on one prompt.

    ``edge`` and ``instance`` number it in the lists of checks and instances; ``places`` are the source's token
    positions, ``values`` what it is set to there (None: left as it is), ``removed`` the share of its activation that
    this takes away; ``targets`` are the target's positions. ``target`` None is the logit difference.
    """

    edge: int
    instance: int
    source: FeatureAt
    target: FeatureAt | None
    places: tuple[int, ...]
    values: tuple[float | None, ...]
    removed: tuple[float, ...]
    targets: tuple[int, ...]
    only_where_edited: bool = False

    @property
    def start(self) -> int:
        """The layer of the source."""
        return self.source.layer

    @property
    def edits(self) -> Callable[[int], Sequence[RowEdit]]:
        """The source set to its value at each of its positions."""
        places = zip(self.places, self.values, strict=True)
        edits = [SetFeature(self.source.layer, self.source.feature, at, value) for at, value in places]
        return lambda _: edits


class EdgeEffects:
    """Records, for the changes on one prompt, the change of each target: value(clean) - value(source changed)."""

    def __init__(
        self,
        model: LanguageModel,
        dictionaries: Mapping[int, Basis],
        suite: Suite[SourceChange],
        elsewhere: Elsewhere = "errors",
        batch_tokens: int = 4096,
        progress: Progress | None = None,
    ) -> None:
        self.model, self.dictionaries, self.changes = model, dictionaries, suite.variants
        [self.pair] = suite.pairs
        self.elsewhere, self.batch_tokens, self.progress = elsewhere, batch_tokens, progress or NullProgress()
        layers = sorted({c.target.layer for c in self.changes if c.target is not None})
        self.capture = [site_read(dictionaries[layer], layer) for layer in layers]
        self._direct: dict[SourceChange, tuple[float, ...]] = {}

    def prepare(self) -> None:
        """Predict and measure the direct effects; fewer at a time where memory runs out."""
        direct = DirectEffects(self.model, self.dictionaries, Question.of_pair(self.pair), self.changes, self.elsewhere)
        size = max(1, min(ROWS, self.batch_tokens // direct.prompt.n_positions))
        measured = oom_backoff(direct.measured, size, self.progress, item_tokens=direct.prompt.n_positions)
        self._direct = {
            change: (*predicted, *values)
            for change, predicted, values in zip(self.changes, direct.predicted(), measured, strict=True)
        }

    def measure(self, rows: EditedRows[SourceChange]) -> list[Values]:
        """The total change of every row's target; 0 for rows that fill the batch up."""
        return [
            (0.0 if change is None else self._total(rows, row, change),) for row, change in enumerate(rows.variants)
        ]

    def cells(self, variant: SourceChange, pair_number: int, n_edits: int, values: Values) -> tuple[Cell, ...]:
        """The change's numbers, its predicted direct effects, its measured ones, and the total one."""
        return variant.edge, variant.instance, *self._direct[variant], *values

    def _total(self, rows: EditedRows[SourceChange], row: int, change: SourceChange) -> float:
        if change.target is None and rows.answers is not None:
            departure = WholeAnswers(self.pair.answer_tokens, self.pair.wrong_tokens).departure
            before, after = (x.to_departure(row, departure) for x in rows.answers)
            return before - after
        if change.target is None:
            return Contrast.of_pair(self.pair).change(rows.clean.logits_BV[row], rows.logits_BV[row])
        basis = self.dictionaries[change.target.layer]
        site = site_read(basis, change.target.layer)
        change_TD = (rows.clean.activations[site][row] - rows.edited[site][row])[list(change.targets)]
        return _along(change_TD, basis.encoder_rows([change.target.feature]))


class DirectEffects:
    """Direct effects of changed sources on the targets of their edges, on one prompt."""

    def __init__(
        self,
        model: LanguageModel,
        bases: Mapping[int, Basis],
        question: Question,
        changes: Sequence[SourceChange],
        elsewhere: Elsewhere = "errors",
    ) -> None:
        self.model, self.bases, self.question, self.changes = model, bases, question, changes
        prompt = linearise(model, bases, torch.tensor(question.tokens), elsewhere=elsewhere)
        ends = {(c.source.layer, c.source.feature, at) for c in changes for at in c.places}
        self.prompt = only_neurons(prompt, ends)
        self._forms = question.explained.forms(model, self.prompt) if question.explained is not None else []

    # --------------------------------------------------------------- predicted

    def predicted(self) -> list[tuple[float, float]]:
        """The value edge and the QK edge of each change, times the share of the source that is removed.

        A QK edge is 0 in an attention whose queries or keys are not affine in its input.
        """
        prompt, index = self.prompt, SourceIndex(self.prompt)
        targets: list[Target] = []
        rows: dict[tuple[FeatureAt | None, tuple[int, ...]], slice] = {}
        for change in self.changes:
            if (key := (change.target, change.targets)) not in rows:
                added = self._targets(change)
                rows[key] = slice(len(targets), len(targets) + len(added))
                targets += added
        if not targets:
            return [(0.0, 0.0)] * len(self.changes)
        values_RS = direct_effects(prompt, index, targets)
        try:
            scores_RS = score_effects(prompt, index, targets, query_keys(self.model, prompt.tokens_T))
        except NotAffine:
            scores_RS = torch.zeros_like(values_RS)
        result = []
        for change in self.changes:
            of_change = rows[change.target, change.targets]
            total = [0.0, 0.0]
            for at, removed in zip(change.places, change.removed, strict=True):
                for column in self._nodes_at(change.source, at):
                    s = index.feature_slices[change.source.layer].start + column
                    of_kind = (float(x_RS[of_change, s].sum()) for x_RS in (values_RS, scores_RS))
                    total = [t + removed * x for t, x in zip(total, of_kind, strict=True)]
            result.append((total[0], total[1]))
        return result

    def _targets(self, change: SourceChange) -> list[Target]:
        """What the change's edge ends at; constants do not matter."""
        if change.target is None:
            return [form.target(self.prompt) for form in self._forms]
        directions_ND = self._directions(change.target, change.targets).to(self.prompt.tokens_TD)
        return [
            Target(change.target.layer, at, direction_D, 0.0, 0.0)
            for at, direction_D in zip(change.targets, directions_ND, strict=True)
        ]

    # ---------------------------------------------------------------- measured

    def measured(self, size: int) -> list[tuple[float, float, float]]:
        """``frozen``, ``qk`` and ``direct_live`` of each change, ``size`` of them at a time.

        Every batch has a clean row of its own, the first. With all frozen the run is affine: there changes are made
        larger by a power of two, and measured ones smaller by it, so that float32's rounding of the residual stream
        does not drown small ones.
        """
        linear, live = (FrozenForward(self.model, self.prompt, live=live) for live in (False, True))
        result: list[tuple[float, float, float]] = []
        for start in range(0, len(self.changes), size):
            part = self.changes[start : start + size]
            nothing = (min(change.start for change in part), 0, self.prompt.tokens_TD.new_zeros(0, 1))
            rows = [[nothing], *(self._deltas(change, live=False) for change in part)]
            frozen, scores = linear.run_through_scores(rows, range(self.model.n_layers))
            scales = [self._scale(deltas) for deltas in rows]
            larger = linear.run_rows([_scaled(deltas, s) for deltas, s in zip(rows, scales, strict=True)])
            whole = live.run_rows([[nothing], *(self._deltas(change, live=True) for change in part)])
            for row, change in enumerate(part, 1):
                of_values, of_both, enlarged = (
                    self._change(run, row, change, live=False) for run in (frozen, scores, larger)
                )
                of_all = self._change(whole, row, change, live=True)
                result.append((enlarged / scales[row], of_both - of_values, of_all))
        return result

    def _scale(self, deltas: Sequence[Delta]) -> float:
        """The power of two, at least 1, that makes what is added about as large as the last residual stream."""
        added = max((float(x_ND.norm(dim=-1).max()) for _, _, x_ND in deltas if x_ND.numel()), default=0.0)
        held = float(self.prompt.resid_final_TD[-1].norm())
        return 2.0 ** max(0, math.floor(math.log2(held / added))) if added else 1.0

    def _change(self, run: FrozenOutput, row: int, change: SourceChange, live: bool) -> float:
        if change.target is None:
            if live:
                clean, changed = (self._explained(run.final_BTD[i]) for i in (0, row))
                return clean - changed
            moved_TD = run.final_BTD[0] - run.final_BTD[row]
            return sum(form.change(moved_TD) for form in self._forms)
        read_BTD, places = run.read[change.target.layer], list(change.targets)
        moved_ND = read_BTD[0, places] - read_BTD[row, places]
        if live:
            return _along(moved_ND, self.bases[change.target.layer].encoder_rows([change.target.feature]))
        return _along(moved_ND, self._directions(change.target, change.targets))

    def _explained(self, normed_TD: Tensor) -> float:
        explained = self.question.explained
        if explained is None:
            return 0.0
        last_PD = normed_TD[-explained.n_logits :]
        return float(explained.value(self.model.unembed(last_PD), last_PD))

    def _deltas(self, change: SourceChange, live: bool) -> list[Delta]:
        """Minus what is taken away of the source's writes at each place (nothing where it is not active)."""
        layer = change.source.layer
        nodes = self.prompt.layers[layer].nodes
        assert nodes is not None, f"layer {layer} has no dictionary"
        deltas: list[Delta] = []
        for at, removed in zip(change.places, change.removed, strict=True):
            for column in self._nodes_at(change.source, at):
                here = slice(column, column + 1)
                if live and isinstance(nodes, ActiveNeurons):
                    written = [nodes.value_M[here, None] * self.bases[layer].writes([change.source.feature])[0]]
                else:
                    written = [nodes.written(ahead, here) for ahead in range(nodes.n_written)]
                deltas.append((layer, at, -removed * torch.cat(written)))
        return deltas

    def _nodes_at(self, source: FeatureAt, position: int) -> list[int]:
        """The source among its layer's nodes; none where it is not active."""
        nodes = self.prompt.layers[source.layer].nodes
        assert nodes is not None, f"layer {source.layer} has no dictionary"
        here = (nodes.position_M == position) & (nodes.feature_M == source.feature)
        return [int(column) for column in here.nonzero()[:, 0]]

    def _directions(self, target: FeatureAt, places: Sequence[int]) -> Tensor:
        """What the target reads at each place of the linearised prompt, [places, D]."""
        nodes = self.prompt.layers[target.layer].nodes
        if isinstance(nodes, ActiveNeurons):
            position_M = torch.tensor(list(places), device=nodes.position_M.device)
            return nodes.mlp.readers(position_M, torch.full_like(position_M, target.feature))[0]
        return self.bases[target.layer].encoder_rows([target.feature]).expand(len(places), -1)


def _scaled(deltas: Sequence[Delta], scale: float) -> list[Delta]:
    return [(layer, at, scale * x_ND) for layer, at, x_ND in deltas]


def _along(change_ND: Tensor, directions_ND: Tensor) -> float:
    return float((change_ND * directions_ND.to(change_ND)).sum())
