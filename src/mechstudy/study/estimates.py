"""What each unit of a study will need: files, memory, and work of every kind, from shapes alone. Torch-free.

Files of static shape are exact, byte for byte (`payload`). Work counts what the code does, not how fast a machine is:
`planning` makes seconds of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from mechstudy.activations.config import store_bytes
from mechstudy.behaviours.user import Outline
from mechstudy.core.sizes import safetensors_bytes
from mechstudy.dictionaries.config import DictionaryConfig
from mechstudy.models.shapes import ModelShapes
from mechstudy.models.sites import parse_layers
from mechstudy.study.dictionary_estimates import DictionaryCost, dictionary_cost, streamed
from mechstudy.study.graph_estimates import graph_cost
from mechstudy.study.intervention_estimates import edges_work, forwards_of
from mechstudy.study.preflight import n_prompts
from mechstudy.study.store_estimates import same_for_every_prompt, store_files
from mechstudy.study.study import BehaviourConfig, Study
from mechstudy.study.unit import Estimate, Held, Work

TYPICAL_PROMPT = 16  # tokens; prompts are known only once they are made
TYPICAL_POSITIONS = 4  # named ones of a prompt
_LENGTHS = 6  # different lengths of a behaviour's prompts: each is a batch of its own
_WINDOW_BYTES = 4 << 20  # of each site, waiting to be shuffled
_MODEL_JSON = 700  # bytes


class Estimator:
    """Estimates of one study's units.

    Args:
        given: of the behaviours' own files.
    """

    def __init__(self, study: Study, shapes: ModelShapes, given: Mapping[str, Outline]) -> None:
        self.study, self.shapes, self.given = study, shapes, given

    # ----------------------------------------------------------------- the model

    def model(self) -> Estimate:
        x = self.shapes
        held = self._model(self.study.model.dtype)
        check = self._forward(2 * TYPICAL_PROMPT, x.n_layers, "float32", batches=4)
        load = Work("load", 4.0 * x.n_parameters)
        read = Work("read", 4.0 * x.n_parameters)  # checksums of the files
        return Estimate(
            bytes_on_disk=_MODEL_JSON,
            bytes_in_memory=held.bytes() + self._block_bytes(TYPICAL_PROMPT) * x.n_layers,
            flops=_flops(check),
            note="load and validate",
            shapes={"parameters": f"{x.n_parameters:,}", "layers": str(x.n_layers), "width": str(x.d_model)},
            holds=(held,),
            work=(load, read, *check),
        )

    def prompts(self, b: BehaviourConfig) -> Estimate:
        n = self._n(b)
        held = self._model(self.study.model.dtype)
        return Estimate(n * 900, held.bytes(), note=f"{n} contrastive pairs", holds=(held,))

    def baseline(self, b: BehaviourConfig) -> Estimate:
        x, n = self.shapes, self._n(b)
        tokens = 2 * n * TYPICAL_PROMPT
        work = self._forward(tokens, x.n_layers, self.study.model.dtype, batches=4 * _LENGTHS, logits=2 * n)
        rows = min(n, self._batch() // TYPICAL_PROMPT)
        held = self._model(self.study.model.dtype)
        working = self._block_bytes(self._batch()) + 4 * 4 * rows * x.vocab_size
        return replace(self._of_model(held, 1000 + n * 160, working, work), note=f"{n} prompts, clean and corrupted")

    # ----------------------------------------------------------------- activations

    def corpus(self) -> Estimate:
        c = self.study.corpus
        size = safetensors_bytes({"tokens": (c.n_rows, c.context)}, "int32")
        shapes = {"tokens": f"{c.n_rows:,} x {c.context}"}
        return Estimate(
            size, 3 * size, exact=True, shapes=shapes, payload={"tokens.safetensors": size},
            work=(Work("write", size), Work("read", size)),
        )  # fmt: skip

    def capture_prompts(self, b: BehaviourConfig, layers: Sequence[int]) -> Estimate:
        c, x = self.study.capture, self.shapes
        sizes = [n_prompts(b, self.given)[split] * len(c.versions) for split in c.splits]
        each = c.positions.count(TYPICAL_PROMPT)
        known = b.file is None and same_for_every_prompt(c.positions.items)
        sites = {f"{kind}.{layer}": x.width(kind) for layer in layers for kind in c.sites}
        payload: dict[str, int] = {}
        for split, n in zip(c.splits, sizes, strict=True):
            payload |= {f"{split}/{name}": size for name, size in store_files(n * each, sites, c.dtype).items()}
        n, rows = sum(sizes), sum(sizes) * each
        tokens = n * TYPICAL_PROMPT
        work = self._forward(tokens, max(layers) + 1, self.study.model.dtype, batches=_LENGTHS * len(sizes))
        held = self._model(self.study.model.dtype, blocks=max(layers) + 1)
        batch = min(tokens, self._batch())
        working = self._block_bytes(batch) + 4 * batch * sum(sites.values())
        found = self._of_model(
            held, store_bytes(rows, sites.values(), c.dtype), working, [*work, Work("write", sum(payload.values()))]
        )
        return replace(
            found, exact=known, payload=payload if known else {},
            note=f"{n} prompts x {c.positions.value} x {len(layers)} layers",
            shapes={"rows": f"{rows:,} x {len(sites)} sites"},
        )  # fmt: skip

    def capture_corpus(self, layers: Sequence[int]) -> Estimate:
        d, c, x = self.study.dictionaries, self.study.corpus, self.shapes
        kinds = list(dict.fromkeys(d.sites()))
        sites = {f"{kind}.{layer}": x.width(kind) for layer in layers for kind in kinds}
        payload: dict[str, int] = {}
        for split, rows in (("train", c.train_rows), ("held_out", c.held_out_rows)):
            files = store_files(rows * c.context, sites, d.store_dtype)
            payload |= {f"{split}/{name}": size for name, size in files.items() if rows}
        tokens = c.n_rows * c.context
        size = sum(payload.values())
        batches = -(-tokens // self._batch())
        work = [
            *self._forward(tokens, max(layers) + 1, d.model_dtype, batches=batches, context=c.context),
            Work("write", size),
            Work("stream", 2.0 * size),  # checksums
        ]
        held = self._model(d.model_dtype, blocks=max(layers) + 1, embedding=True)
        batch = min(tokens, self._batch())
        working = self._block_bytes(batch) + 4 * batch * sum(sites.values()) + 2 * _WINDOW_BYTES * len(sites)
        found = self._of_model(held, size, working, work)
        shapes = {"rows": f"{tokens:,} x {len(sites)} sites x {next(iter(sites.values()))}"}
        return replace(found, exact=True, payload=payload, shapes=shapes)

    # ----------------------------------------------------------------- dictionaries

    def stream(self, layers: Sequence[int]) -> Estimate:
        d, c, t = self.study.dictionaries, self.study.corpus, self.study.dictionaries.training
        architectures = [d.architecture, *(variant.architecture or d.architecture for variant in d.variants)]
        each = [self._dictionary(architecture) for architecture in architectures for _ in layers]
        widths = sum(self.shapes.width(kind) for kind in dict.fromkeys(d.sites())) * len(layers)
        tokens = t.steps * t.batch_size
        batches = -(-tokens // self._batch())
        forward = self._forward(tokens, max(layers) + 1, d.model_dtype, batches=batches, context=c.context)
        working = self._block_bytes(self._batch()) + 2 * d.window_rows * widths + sum(cost.memory for cost in each)
        work = [*forward, *(w for cost in each for w in cost.work)]
        found = self._of_model(self._model(d.model_dtype), sum(cost.disk for cost in each), working, work)
        return replace(
            found,
            note=f"{t.steps:,} steps x {t.batch_size:,} rows, streamed",
            shapes={"window": f"{d.window_rows:,} rows x {widths:,}"},
        )

    def train(self, architecture: DictionaryConfig) -> Estimate:
        """Of one layer's dictionary, and of judging it. Where it was streamed, judging alone."""
        d, x = self.study.dictionaries, self.shapes
        cost = self._dictionary(architecture)
        if d.source == "stream":
            cost = streamed(cost)
        tokens = min(d.evaluation_tokens, self.study.corpus.held_out_rows * self.study.corpus.context)
        at_once = min(tokens, 1024)
        judge = [
            *self._forward(2 * tokens, x.n_layers, d.model_dtype, batches=2 * -(-tokens // 1024), logits=3 * tokens),
            Work("stream", 30.0 * tokens * x.vocab_size * 4),  # softmaxes and their differences
        ]
        held = self._model(d.model_dtype)
        judging = 5 * 4 * at_once * x.vocab_size + self._block_bytes(at_once)
        found = self._of_model(
            held, cost.disk, max(cost.memory, cost.weights + judging), [*cost.work, *judge], flops=cost.flops
        )
        return replace(found, note=cost.note, shapes=cost.shapes, exact=True, payload=cost.payload)

    def _dictionary(self, architecture: DictionaryConfig) -> DictionaryCost:
        return dictionary_cost(self.study, architecture, self.shapes)

    def _dictionaries(self) -> Held:
        d = self.study.dictionaries
        layers = parse_layers(d.layers, self.shapes.n_layers)
        return Held("dictionaries", len(layers) * self._dictionary(d.architecture).weights // 4)

    # ----------------------------------------------------------------- graphs, features, interventions

    def attribute(self, b: BehaviourConfig) -> Estimate:
        a, x, d = self.study.attribution, self.shapes, self.study.dictionaries
        n = min(a.n_prompts, n_prompts(b, self.given)["train"])
        layers = len(parse_layers(d.layers, x.n_layers))
        graph = graph_cost(x, self._dictionary(d.architecture), layers, a.max_features, TYPICAL_PROMPT)
        forward = self._forward(n * TYPICAL_PROMPT * 4, x.n_layers, "float32", batches=4 * n, logits=2 * n)
        work = [
            *forward,
            Work("attribute", n * graph.flops, "float32", x.d_model, n * graph.calls),
            Work("stream", n * graph.moved),
        ]
        # The live gradient keeps every block's tensors.
        working = graph.memory + self._block_bytes(TYPICAL_PROMPT) * x.n_layers
        found = self._of_model(self._model("float32"), n * graph.rows * 600, working, work, self._dictionaries())
        return replace(found, note=f"{n} prompts x {graph.rows - 1:,} feature rows at most")

    def features(self) -> Estimate:
        f, c, x, d = self.study.features, self.study.corpus, self.shapes, self.study.dictionaries
        tokens = min(f.documents, c.train_rows) * c.context
        layers = parse_layers(d.layers, x.n_layers)
        cost = self._dictionary(d.architecture)
        pages = f.per_behaviour * len(self.study.behaviours)
        again = min(f.documents, pages * f.examples) * c.context  # the examples' documents once more
        batches = -(-(tokens + again) // self._batch())
        encoding = 2.0 * (tokens + again) * cost.d_in * cost.n_features * len(layers)
        work = [
            *self._forward(tokens + again, max(layers) + 1, d.model_dtype, batches=batches, context=c.context),
            Work("train", encoding, "float32", cost.d_in),
            Work("stream", 12.0 * (tokens + again) * cost.n_features * len(layers)),
            *self._forward(0, 0, d.model_dtype, batches=0, logits=pages),
        ]
        batch = min(tokens, self._batch())
        working = (
            self._block_bytes(batch)
            + 4 * batch * (x.d_model * len(layers) + 3 * cost.n_features)
            + 2 * 2 * again * pages
            + 4 * 2 * pages * x.vocab_size // max(1, len(layers))
        )
        found = self._of_model(self._model(d.model_dtype), pages * 4000, working, work, self._dictionaries())
        return replace(found, note=f"{tokens:,} tokens searched, {pages:,} pages at most")

    def intervene(self, b: BehaviourConfig) -> Estimate:
        i, x = self.study.interventions, self.shapes
        samples = min(i.n_samples, n_prompts(b, self.given)["test"])
        edited, grid = forwards_of(i, samples, x.n_layers, TYPICAL_POSITIONS)
        forwards = edited + grid
        tokens = forwards * TYPICAL_PROMPT
        batches = _LENGTHS + tokens // self._batch()
        # Edited forwards begin at the lowest edited layer: half-way, on average.
        half = -(-x.n_layers // 2)
        discovery = (min(i.n_discovery, n_prompts(b, self.given)["train"]) + 2 * samples) * TYPICAL_PROMPT
        n_prompts_of_edges = min(i.edge_prompts, self.study.attribution.n_prompts)
        work = [
            *self._forward(tokens, half, "float32", batches=batches, logits=forwards),
            *self._forward(discovery, x.n_layers, "float32", batches=4 * _LENGTHS),
            Work("stream", 12.0 * forwards * x.vocab_size * 4),
        ]
        if "edges" in i.kinds and i.n_edges:
            work += edges_work(i, x, n_prompts_of_edges, TYPICAL_PROMPT)
        batch = min(tokens, self._batch())
        rows = batch // TYPICAL_PROMPT
        working = (
            self._block_bytes(batch)
            + 4 * batch * x.d_model * min(x.n_layers, 8)
            + 6 * 4 * rows * x.vocab_size
            + 4 * 512 * self._dictionary(self.study.dictionaries.architecture).n_features
        )
        disk = 20_000 + 400 * forwards
        found = self._of_model(self._model("float32"), disk, working, work, self._dictionaries())
        return replace(found, note=f"about {forwards:,} forward passes")

    def report(self) -> Estimate:
        n = len(self.study.behaviours)
        size = (6 << 20) + n * self.study.attribution.n_prompts * (self.study.attribution.max_features * 300)
        pages = 2 + 6 * n
        return Estimate(size, 256 << 20, note="figures and pages", work=(Work("write", size), Work("pages", pages)))

    # ----------------------------------------------------------------- parts

    def _n(self, b: BehaviourConfig) -> int:
        return sum(n_prompts(b, self.given).values())

    def _batch(self) -> int:
        return max(TYPICAL_PROMPT, self.study.compute.batch_tokens)

    def _model(self, dtype: str, blocks: int | None = None, *, embedding: bool = False) -> Held:
        """The model, of which the first ``blocks`` are read, and the embedding of many tokens or of a few."""
        x = self.shapes
        converted = self.study.model.source.startswith(("pypi:", "gguf:"))  # into float32 (models.sources)
        stored = "float32" if converted else "bfloat16"
        if blocks is None:
            return Held("model", x.n_parameters, dtype, stored=stored)
        touched = round(x.n_block_parameters * blocks / x.n_layers) + embedding * x.vocab_size * x.d_model
        return Held("model", x.n_parameters, dtype, min(touched, x.n_parameters), stored)

    def _forward(
        self,
        tokens: float,
        layers: int,
        dtype: str,
        *,
        batches: float,
        logits: float = 0,
        context: int = TYPICAL_PROMPT,
    ) -> list[Work]:
        """Blocks over so many tokens, and the unembedding of ``logits`` of them."""
        x = self.shapes
        found = []
        if tokens and layers:
            attention = 2.0 * context * x.n_heads * x.head_dim * layers  # scores and mixing, half of them masked
            flops = tokens * (2.0 * x.n_block_parameters * layers / x.n_layers + attention)
            found.append(Work("forward", flops, dtype, x.d_model, batches * layers))
            # Norms, rotations, gates and additions pass over what the products leave.
            found.append(Work("stream", tokens * layers * (12.0 * x.d_model + 6.0 * x.d_mlp) * 4))
        if logits:
            found.append(Work("forward", 2.0 * logits * x.vocab_size * x.d_model, dtype, x.d_model))
        return found

    def _block_bytes(self, tokens: int) -> int:
        """Tensors of one block that are alive at a time."""
        x = self.shapes
        return 4 * tokens * (6 * x.d_model + 3 * x.d_mlp + 2 * x.head_dim * (x.n_heads + 2 * x.n_kv_heads))

    def _of_model(
        self, held: Held, disk: int, working: int, work: Sequence[Work], *more: Held, flops: float = 0.0
    ) -> Estimate:
        """An estimate of a unit that uses the model, which has to be loaded where it is not yet."""
        holds = (held, *more)
        load = Work("load", 4.0 * held.count, held.dtype)
        return Estimate(
            disk,
            sum(h.bytes() for h in holds) + working,
            flops or _flops(work),
            holds=holds,
            work=(load, *work),
        )


def _flops(work: Sequence[Work]) -> float:
    return sum(w.amount for w in work if w.kind in ("forward", "train", "attribute"))
