"""Circuits planted into an existing model by editing its weights: a trigger's word decides the answer at the end.

The plant has three steps. A relay head attends from a relay word to the trigger and writes which of two trigger words
it saw; one or two carrier heads attend from the last word to the relay and copy that; four neurons of a later MLP turn
it into the logits of the answers. Each step writes a direction of its own, and everything else that writes to the
residual stream is projected out of it: nothing but the plant moves the answers' contrast, but for the scale of norms.
Other heads and MLPs read these directions as they read any, so they differ between clean and corrupted prompts.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from numpy.random import Generator
from torch import Tensor

from mechstudy.behaviours.schema import PromptPair
from mechstudy.circuits.components import Component, Components, HeadAt, MlpAt
from mechstudy.circuits.named_positions import NamedPositions
from mechstudy.core.errors import MechstudyError
from mechstudy.core.seeds import numpy_generator, torch_generator
from mechstudy.models.batches import captured, length_buckets
from mechstudy.models.language_model import LanguageModel
from mechstudy.models.sites import Site
from mechstudy.referee.known_circuit import TOLERANCE, EdgeAt, KnownCircuit
from mechstudy.referee.words import pair_of

SCORE = 40.0  # of the planted heads where they attend; 0 elsewhere
READ = 24.0  # what the planted neurons' gates read of what was copied
SIZES = (8.0, 16.0, 32.0, 64.0)  # of the answer's write, in sizes of the last residual stream
MARK = 0.1  # of the length of an embedding or stream: what the plant adds that differs between the triggers
POOL = 4  # prompts drawn for each that is used
UNUSUAL = 2.5  # times what the neurons read on the median prompt
BATCH_TOKENS = 1024
_FOUR = ((1.0, 6.0), (1.0, 0.0), (-1.0, 6.0), (-1.0, 0.0))  # sign of z, and c, of each neuron
_DIRECTIONS = ("seen", "carried", "copied", "answer", "is_trigger", "asks_trigger", "is_relay", "asks_relay")


@dataclass(frozen=True)
class Plan:
    """Where a circuit is planted: (layer, head) of the relay and the carriers, and the MLP's layer."""

    relay: tuple[int, int]
    carriers: tuple[tuple[int, int], ...]
    mlp: int


def planted(
    model: LanguageModel, seed: int, *, n_pairs: int = 12, tolerance: float = TOLERANCE / 2, plan: Plan | None = None
) -> KnownCircuit:
    """A copy of a model with a circuit planted into it; every seed gives another one.

    The seed draws layers, heads, words, directions and prompts. A planted head overwrites its group of heads with
    shared keys and values, of which the others fall silent. The answer is written at the smallest of `SIZES` at which
    keeping the circuit alone changes the contrast by at most ``tolerance``.

    Args:
        model: of the Llama family or one like it: RMSNorm before attention and a gated MLP, rotary positions.
        seed: of the circuit.
        n_pairs: of each split.
        tolerance: what nodes outside of the circuit may change, as a share of the effect of all nodes.
        plan: where; by default drawn.

    Raises:
        MechstudyError: a model of another architecture or of fewer than three layers, or no size is enough.
    """
    _check_architecture(model)
    return _planted(model, seed, n_pairs, tolerance, plan)[0]


def planted_pair(
    model: LanguageModel,
    seeds: tuple[int, int],
    plans: tuple[Plan, Plan],
    *,
    n_pairs: int = 12,
    tolerance: float = TOLERANCE / 2,
) -> tuple[KnownCircuit, KnownCircuit]:
    """Two circuits in one copy of a model, without a head, an MLP, a word or a direction in common.

    The first circuit's model has both, the second's has the second alone.

    Args:
        model: as of `planted`.
        seeds: of the circuits.
        plans: of the circuits.
        n_pairs: of each split.
        tolerance: as of `planted`.

    Raises:
        MechstudyError: as of `planted`.
    """
    _check_architecture(model)
    below, taken = _planted(model, seeds[1], n_pairs, tolerance, plans[1])
    above, _ = _planted(below.model, seeds[0], n_pairs, tolerance, plans[0], beside=taken)
    return above, below


@dataclass(frozen=True)
class _Taken:
    """What a plant has for itself: its directions [d, n], and its tokens."""

    basis_DN: Tensor
    tokens: frozenset[int]


def _planted(
    model: LanguageModel, seed: int, n_pairs: int, tolerance: float, plan: Plan | None, beside: _Taken | None = None
) -> tuple[KnownCircuit, _Taken]:
    name = f"planted_{seed}"
    rng = numpy_generator(seed, name, "plan")
    where = plan or draw_plan(model, rng)
    words = _Words.drawn(model, rng, beside.tokens if beside else frozenset())
    with torch.no_grad():
        plant = _Plant(
            _copied(model, f"{model.name} with circuit {seed}"), seed, name, beside.basis_DN if beside else None
        )
        plant.clear()
        plant.embed(words)
        pool = _pairs(model, name, words, rng, POOL * n_pairs)
        plant.relay(where.relay, pool)
        plant.carriers(where.carriers, pool)
        plant.neurons(where.mlp, pool)
        splits = plant.usual_prompts(where.mlp, pool, n_pairs)
    nodes, edges = _truth(where)
    positions = NamedPositions.of([*splits[0], *splits[1]])
    for size in SIZES:
        with torch.no_grad():
            plant.answer(where.mlp, size, splits[0])
        circuit = KnownCircuit(
            name,
            f"a relay head, {len(where.carriers)} carrier head(s) and an MLP, planted into {model.name}",
            plant.model,
            Components(plant.model, positions),
            (frozenset(nodes),),
            splits[0],
            splits[1],
            frozenset(edges),
        )
        if circuit.kept_change(splits[0]) <= tolerance:
            return circuit, _Taken(plant.basis_DN, words.tokens)
    raise MechstudyError(
        f"the circuit of seed {seed} cannot be planted: other nodes change the answer too",
        fix="another seed, or a larger tolerance",
    )


def draw_plan(model: LanguageModel, rng: Generator) -> Plan:
    """Layers in order, one for each step, with one carrier or two where there is room, and heads."""
    n_carriers = int(rng.integers(1, 3)) if model.n_layers >= 4 else 1
    layers = sorted(rng.choice(model.n_layers, n_carriers + 2, replace=False).tolist())
    heads = [(layer, int(rng.integers(model.n_heads))) for layer in layers[:-1]]
    return Plan(heads[0], tuple(heads[1:]), layers[-1])


def _truth(where: Plan) -> tuple[list[Component], list[EdgeAt]]:
    relay, mlp = f"head.{where.relay[0]}.{where.relay[1]}", f"mlp.{where.mlp}"
    nodes: list[Component] = [HeadAt(*where.relay, "relay"), MlpAt(where.mlp, "last")]
    edges = [EdgeAt(mlp, "logits", "last")]
    for layer, head in where.carriers:
        nodes.append(HeadAt(layer, head, "last"))
        edges += [
            EdgeAt(relay, f"head.{layer}.{head}", "relay"),
            EdgeAt(f"head.{layer}.{head}", mlp, "last"),
        ]
    return nodes, edges


def _check_architecture(model: LanguageModel) -> None:
    arch, block = model.arch, model.blocks[0]
    plain = (arch.value, arch.norm, arch.qk_norm, arch.experts) == ("v_proj", "rms", None, None)
    pre_norms = None not in (block.norm_attn, block.norm_mlp) and block.norm_attn_post is block.norm_mlp_post is None
    if not plain or not pre_norms or not arch.gated or arch.mlp_gate is None or block.parallel:
        raise MechstudyError(
            f"no circuit can be planted into {arch.name} models",
            fix="a model with RMSNorm before attention and a gated MLP, such as Llama, Qwen2 and SmolLM2",
        )
    if block.residual_multiplier != 1 or model.logit_scale != 1 or model.final_softcap is not None:
        raise MechstudyError(f"no circuit can be planted into {arch.name} models, which scale what blocks write")
    if model.n_layers < 3:
        raise MechstudyError(f"{model.name} has {model.n_layers} layers, and a circuit needs three")


def _copied(model: LanguageModel, name: str) -> LanguageModel:
    return LanguageModel(copy.deepcopy(model.hf), model.tokenizer, model.arch, name)


# ---------------------------------------------------------------------------------------------- prompts


@dataclass(frozen=True)
class _Words:
    """Tokens of a plant: two triggers, a relay, the last word, two answers, and fillers."""

    first: tuple[int, ...]
    triggers: tuple[int, int]
    relay: int
    last: int
    answers: tuple[int, int]
    fillers: tuple[int, ...]

    @classmethod
    def drawn(cls, model: LanguageModel, rng: Generator, taken: frozenset[int]) -> _Words:
        """Different tokens, none of those that are taken; whole words if the vocabulary has enough of them."""
        rows = min(model.vocab_size, model.hf.get_input_embeddings().weight.shape[0], len(model.tokenizer))
        special = set(model.tokenizer.all_special_ids)
        plain = [t for t in range(rows) if t not in special | taken]
        some = [int(t) for t in rng.choice(plain, min(len(plain), 2000), replace=False)]
        text = dict(zip(some, model.token_strings(some), strict=True))
        words = [t for t in some if re.fullmatch(r" [a-z]{3,}", text[t])]
        chosen = words if len(words) >= 60 else some
        if len(chosen) < 30:
            raise MechstudyError(f"the vocabulary of {model.name} has only {len(chosen)} tokens for a circuit")
        bos = model.tokenizer.bos_token_id
        a, b, relay, last, right, wrong, *fillers = chosen
        return cls((bos,) if bos is not None else (), (a, b), relay, last, (right, wrong), tuple(fillers[:40]))

    @property
    def tokens(self) -> frozenset[int]:
        """All of them but the first, which every prompt has."""
        return frozenset({*self.triggers, self.relay, self.last, *self.answers, *self.fillers})


def _pairs(model: LanguageModel, name: str, words: _Words, rng: Generator, n: int) -> tuple[PromptPair, ...]:
    """Prompts with fillers around trigger and relay; every other pair's clean prompt has the second trigger."""
    needed = sorted({*words.first, *words.tokens})
    text = [""] * (needed[-1] + 1)
    for token, string in zip(needed, model.token_strings(needed), strict=True):
        text[token] = string
    pairs = []
    for number in range(n):
        counts = rng.integers(1, 4, 3)
        fillers = [int(t) for t in rng.choice(words.fillers, int(counts.sum()), replace=False)]
        cuts = [int(c) for c in counts.cumsum()]
        start = [*words.first, *fillers[: cuts[0]]]
        end = [*fillers[cuts[0] : cuts[1]], words.relay, *fillers[cuts[1] :], words.last]
        order = (0, 1) if number % 2 == 0 else (1, 0)
        clean, corrupted = ([*start, words.triggers[i], *end] for i in order)
        at = {"trigger": len(start), "relay": clean.index(words.relay), "last": len(clean) - 1}
        answers = (words.answers[order[0]], words.answers[order[1]])
        pairs.append(pair_of(name, number, text, clean, corrupted, answers, at))
    return tuple(pairs)


# ---------------------------------------------------------------------------------------------- weights


class _Plant:
    """Edits the weights of a model, step by step; each measures what it needs of the model as it is by then."""

    def __init__(self, model: LanguageModel, seed: int, name: str, taken_DN: Tensor | None) -> None:
        self.model = model
        draw = torch.randn(
            model.d_model, len(_DIRECTIONS), generator=torch_generator(seed, name, "directions"), dtype=torch.float64
        )
        safe = self._safe_coordinates()
        if int(safe.sum()) < 2 * len(_DIRECTIONS) + (0 if taken_DN is None else taken_DN.shape[1]):
            raise MechstudyError(f"{model.name} is too narrow for a circuit")
        free = draw * safe[:, None]
        if taken_DN is not None:
            free = free - taken_DN @ (taken_DN.T @ free)
        self.basis_DN = torch.linalg.qr(free).Q
        self._number = {direction: i for i, direction in enumerate(_DIRECTIONS)}
        self._neurons: dict[int, float] = {}  # and the sign of what each writes

    def clear(self) -> None:
        """Projects every embedding, head and MLP out of the plant's directions."""
        embeddings = self.model.hf.get_input_embeddings().weight
        written = [embeddings.T]
        for block in self.model.blocks:
            written += [block.attn_proj.weight, block.mlp_down.weight]
            assert block.mlp_down.bias is None, "gated MLPs of these families have no bias"
        for weight_DX in written:
            wide = weight_DX.double()
            weight_DX.copy_(wide - self.basis_DN @ (self.basis_DN.T @ wide))
        for block in self.model.blocks:
            if block.attn_proj.bias is not None:
                wide = block.attn_proj.bias.double()
                block.attn_proj.bias.copy_(wide - self.basis_DN @ (self.basis_DN.T @ wide))

    def embed(self, words: _Words) -> None:
        """Marks triggers, relay and last word; the two triggers and the two answers are alike but for the plant."""
        embeddings, unembedding = self.model.hf.get_input_embeddings().weight, self.model.unembedding.weight
        used = [*words.triggers, words.relay, words.last]
        size = float(embeddings[used].double().norm(dim=1).mean())
        a, b = words.triggers
        alike = embeddings[[a, b]].double().mean(0) + size * self._direction("is_trigger")
        seen = MARK * size * self._direction("seen")
        embeddings[a], embeddings[b] = (alike + seen).to(embeddings), (alike - seen).to(embeddings)
        asks = size * (self._direction("asks_trigger") + self._direction("is_relay"))
        embeddings[words.relay] += asks.to(embeddings)
        embeddings[words.last] += (size * self._direction("asks_relay")).to(embeddings)
        right, wrong = words.answers
        read = self._reading("answer", self.model.final_norm)
        common = unembedding[[right, wrong]].double().mean(0)
        read = read * float(unembedding[used].double().norm(dim=1).mean())
        unembedding[right], unembedding[wrong] = ((common + sign * read).to(unembedding) for sign in (1, -1))

    def relay(self, place: tuple[int, int], pairs: Sequence[PromptPair]) -> None:
        """The head that attends from the relay to the trigger and writes what it saw there."""
        size = MARK * self._size(Site("resid_pre", place[0]), "relay", pairs)
        self._head(place, ("relay", "asks_trigger"), ("trigger", "is_trigger"), ("seen", "carried"), pairs, size)

    def carriers(self, places: Sequence[tuple[int, int]], pairs: Sequence[PromptPair]) -> None:
        """Heads that attend from the last word to the relay and copy what it carries, in equal parts.

        With the corrupted prompt's part in one of two, nothing is left to read.
        """
        size = MARK * self._size(Site("resid_pre", places[0][0]), "last", pairs) / len(places)
        for place in places:
            self._head(place, ("last", "asks_relay"), ("relay", "is_relay"), ("carried", "copied"), pairs, size)

    def _head(
        self,
        place: tuple[int, int],
        query: tuple[str, str],
        key: tuple[str, str],
        moved: tuple[str, str],
        pairs: Sequence[PromptPair],
        size: float,
    ) -> None:
        """Overwrites a head: it attends from one marked position to another, and moves a direction.

        What it writes has length ``size``.
        """
        layer, head = place
        model, block = self.model, self.model.blocks[layer]
        stream = self._streams(Site("resid_pre", layer), pairs)
        attn, width, norm = block.attn, model.head_dim, block.norm_attn
        n_groups = attn.k_proj.weight.shape[0] // width
        group = head // (model.n_heads // n_groups)
        rows, shared = (slice(i * width, (i + 1) * width) for i in (head, group))
        mates = slice(group * (model.n_heads // n_groups) * width, (group + 1) * (model.n_heads // n_groups) * width)
        for weight in (attn.q_proj.weight[rows], attn.k_proj.weight[shared], attn.v_proj.weight[shared]):
            weight.zero_()
        for projection, part in ((attn.q_proj, rows), (attn.k_proj, shared), (attn.v_proj, shared)):
            if projection.bias is not None:
                projection.bias[part] = 0
        block.attn_proj.weight[:, mates] = 0
        slot = width // 2 - 1  # its rotary map turns slowest
        asked, answered = self._read(query[1], stream[query[0]]), self._read(key[1], stream[key[0]])
        strength = SCORE * width**0.5 / (asked * answered)
        attn.q_proj.weight[rows.start + slot] = (strength * self._reading(query[1], norm)).to(attn.q_proj.weight)
        attn.k_proj.weight[shared.start + slot] = self._reading(key[1], norm).to(attn.k_proj.weight)
        attn.v_proj.weight[shared.start] = self._reading(moved[0], norm).to(attn.v_proj.weight)
        written = size / self._read(moved[0], stream[key[0]]) * self._direction(moved[1])
        block.attn_proj.weight[:, rows.start] = written.to(block.attn_proj.weight)

    def neurons(self, layer: int, pairs: Sequence[PromptPair]) -> None:
        """Four neurons, those that wrote least, that saturate: silu(z + c) - silu(z) is 0 or c, and likewise for -z.

        z is what they read of the copied direction, and c and their other branch are what marks the last word: where
        that mark is not, they hold 0.
        """
        block = self.model.blocks[layer]
        stream = self._streams(Site("resid_mid", layer), pairs)["last"]
        copied = self._reading("copied", block.norm_mlp) * READ / self._read("copied", stream)
        mark = self._reading("asks_relay", block.norm_mlp) / self._read("asks_relay", stream)
        mlp: Any = block.mlp
        gate, up = getattr(mlp, str(block.arch.mlp_gate)).weight, getattr(mlp, block.arch.mlp_up).weight
        for neuron, (sign, offset) in zip(self._quiet(layer), _FOUR, strict=True):
            gate[neuron] = (sign * copied + offset * mark).to(gate)
            up[neuron] = mark.to(up)
            block.mlp_down.weight[:, neuron] = 0
            self._neurons[neuron] = sign if offset else -sign

    def _quiet(self, layer: int) -> list[int]:
        """The neurons that write least."""
        lengths_F = self.model.blocks[layer].mlp_down.weight.double().norm(dim=0)
        return [int(neuron) for neuron in lengths_F.argsort()[: len(_FOUR)]]

    def usual_prompts(
        self, layer: int, pairs: Sequence[PromptPair], n: int
    ) -> tuple[tuple[PromptPair, ...], tuple[PromptPair, ...]]:
        """Two splits of ``n`` pairs on which the MLP reads what was copied about as strongly as on most.

        Some models write a vector of enormous length at a few tokens of some prompts, and norms then scale all else
        down: what is planted there is hardly read.

        Raises:
            MechstudyError: there are too few such pairs.
        """
        read_P = self._reads("copied", self._streams(Site("resid_mid", layer), pairs)["last"])
        ratio_P = read_P / read_P.median()
        left = [pair for pair, ratio in zip(pairs, ratio_P.tolist(), strict=True) if 1 / UNUSUAL < ratio < UNUSUAL]
        if len(left) < 2 * n:
            raise MechstudyError(
                f"only {len(left)} of {len(pairs)} prompts of {self.model.name} suit it", fix="another seed"
            )
        return tuple(left[:n]), tuple(left[n : 2 * n])

    def answer(self, layer: int, size: float, pairs: Sequence[PromptPair]) -> None:
        """What the neurons write: the answers' direction, as many times as long as the rest of the last stream."""
        block, answer = self.model.blocks[layer], self._direction("answer")
        down, neurons = block.mlp_down.weight, list(self._neurons)
        down[:, neurons] = 0
        rest = self._size(Site("resid_post", self.model.n_layers - 1), "last", pairs)
        held_PF = self._streams(Site("mlp_act", layer), pairs)["last"][:, neurons]
        signs_F = torch.tensor(list(self._neurons.values())).to(held_PF)
        written = size * rest / float((held_PF @ signs_F).abs().median()) * answer
        for neuron, sign in self._neurons.items():
            down[:, neuron] = (sign * written).to(down)

    # ------------------------------------------------------------------------------------------- measured

    def _safe_coordinates(self) -> Float[Tensor, " d"]:
        """1 where every norm has a weight that can be divided by, else 0."""
        norms = [self.model.final_norm, *(n for b in self.model.blocks for n in (b.norm_attn, b.norm_mlp))]
        weights = torch.stack([norm.weight.double().abs() for norm in norms])
        return (weights > 0.02 * weights.median(1).values[:, None]).all(0).double()

    def _direction(self, name: str) -> Float[Tensor, " d"]:
        direction: Tensor = self.basis_DN[:, self._number[name]].to(self.model.device)
        return direction

    def _reading(self, name: str, norm: Any) -> Float[Tensor, " d"]:
        """A row of weights that reads a direction through a norm's weights."""
        read: Tensor = self._direction(name) / norm.weight.double()
        return read

    def _read(self, name: str, stream_PD: Tensor) -> float:
        """The median of `_reads`."""
        return float(self._reads(name, stream_PD).median())

    def _reads(self, name: str, stream_PD: Tensor) -> Float[Tensor, " p"]:
        """The size of what `_reading` reads of each residual stream: that of the direction over the norm's scale."""
        read_P: Tensor = (stream_PD @ self._direction(name)).abs() / stream_PD.square().mean(1).sqrt()
        return read_P

    def _size(self, site: Site, position: str, pairs: Sequence[PromptPair]) -> float:
        """The median length of a residual stream at a named position."""
        return float(self._streams(site, pairs)[position].norm(dim=1).median())

    def _streams(self, site: Site, pairs: Sequence[PromptPair]) -> Mapping[str, Float[Tensor, "p d"]]:
        """A site at each named position of the clean prompts, in float64."""
        rows: dict[str, dict[int, Tensor]] = {}
        for batch in length_buckets([len(pair.clean_tokens) for pair in pairs], BATCH_TOKENS):
            tokens = torch.tensor([pairs[i].clean_tokens for i in batch])
            x_BTD = captured(self.model, tokens, [site])[site]
            for row, i in enumerate(batch):
                for name, index in pairs[i].positions.items():
                    rows.setdefault(name, {})[i] = x_BTD[row, index].double()
        return {name: torch.stack([of_name[i] for i in range(len(pairs))]) for name, of_name in rows.items()}
