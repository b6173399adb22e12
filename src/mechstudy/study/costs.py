"""What running the study's model and training its dictionaries costs: parts that estimates of several phases share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from mechstudy.behaviours.user import Outline
from mechstudy.core.errors import MechstudyError
from mechstudy.core.sizes import ITEM_BYTES
from mechstudy.core.work import Estimate, Held, Work, flops_of
from mechstudy.dictionaries import sizes
from mechstudy.dictionaries.config import DictionaryConfig
from mechstudy.models.shapes import ModelShapes
from mechstudy.study.preflight import n_prompts
from mechstudy.study.published import Published
from mechstudy.study.study import BehaviourConfig, Study

TYPICAL_PROMPT = 16  # tokens; prompts are known only once they are made
TYPICAL_POSITIONS = 4  # named ones of a prompt
LENGTHS = 6  # distinct lengths of a behaviour's prompts, each a batch of its own
WEIGHTS = "dictionary/sae_weights.safetensors"
_OTHER_FILES = 8_000  # bytes of a dictionary's cfg.json, evaluation.json and the heads of its logs


@dataclass(frozen=True)
class DictionaryCosts:
    """Bytes of float32 ``weights``, of training's working set (``memory``) and of the artifact (``disk``).

    The last three items of ``work`` evaluate the dictionary and write its file.
    """

    d_in: int
    n_features: int
    weights: int
    memory: int
    disk: int
    flops: float
    work: tuple[Work, ...]
    payload: Mapping[str, int] = field(default_factory=dict)
    shapes: Mapping[str, str] = field(default_factory=dict)

    def streamed(self) -> DictionaryCosts:
        """The costs that remain after a streamed pass has trained it: copying and evaluation."""
        work = (Work("read", self.disk), *self.work[-3:])
        return replace(self, memory=2 * self.weights, flops=0.0, work=work)


class Costs:
    """Costs of the model and the dictionaries of one study.

    Args:
        outlines: of the behaviours' own prompt files.
        published: dictionaries that the study uses instead of training its own.
    """

    def __init__(
        self,
        study: Study,
        shapes: ModelShapes,
        outlines: Mapping[str, Outline],
        published: Sequence[Published] = (),
    ) -> None:
        self.study, self.shapes, self.outlines, self.published = study, shapes, outlines, published

    def n_prompts(self, behaviour: BehaviourConfig) -> Mapping[str, int]:
        """Prompts per split."""
        return n_prompts(behaviour, self.outlines)

    def more_in_file(self, behaviour: BehaviourConfig) -> bool:
        """Whether the behaviour's own file has more prompts than are asked for, in any split."""
        outline = self.outlines.get(behaviour.name)
        return outline is not None and any(outline.n[split] > n for split, n in self.n_prompts(behaviour).items())

    def chosen_from_file(self, behaviour: BehaviourConfig, **asked: int) -> bool:
        """Whether fewer prompts are asked for than the behaviour takes from its own file, in any of these splits."""
        n = self.n_prompts(behaviour)
        return behaviour.name in self.outlines and any(number < n[split] for split, number in asked.items())

    def total_prompts(self, behaviour: BehaviourConfig) -> int:
        """Prompts of both splits."""
        return sum(self.n_prompts(behaviour).values())

    @property
    def batch(self) -> int:
        """Tokens of a batch."""
        return max(TYPICAL_PROMPT, self.study.compute.batch_tokens)

    def model(self, dtype: str, blocks: int | None = None, *, embedding: bool = False) -> Held:
        """The model in memory: its first ``blocks``, and the embedding of many tokens or of a few."""
        x = self.shapes
        converted = self.study.model.source.startswith(("pypi:", "gguf:"))  # into float32 (models.sources)
        stored = "float32" if converted else "bfloat16"
        if blocks is None:
            return Held("model", x.n_parameters, dtype, stored=stored)
        in_blocks = x.n_parameters - x.n_embedding_parameters
        touched = round(in_blocks * blocks / x.n_layers) + embedding * x.vocab_size * x.d_model
        return Held("model", x.n_parameters, dtype, min(touched, x.n_parameters), stored)

    def forward(
        self,
        tokens: float,
        layers: int,
        dtype: str,
        *,
        batches: float,
        logits: float = 0,
        context: int = TYPICAL_PROMPT,
    ) -> list[Work]:
        """Blocks over this many tokens, and the unembedding of ``logits`` of them."""
        x = self.shapes
        work = []
        if tokens and layers:
            attention = 2.0 * context * x.n_heads * x.head_dim * layers  # scores and mixing, half of them masked
            flops = tokens * (2.0 * x.n_block_parameters * layers / x.n_layers + attention)
            work.append(Work("forward", flops, dtype, x.d_model, batches * layers))
            # Norms, rotations, gates and additions pass over what the products leave.
            work.append(Work("stream", tokens * layers * (12.0 * x.d_model + 6.0 * x.d_mlp) * 4))
        if logits:
            work.append(Work("forward", 2.0 * logits * x.vocab_size * x.d_model, dtype, x.d_model))
        return work

    def block_bytes(self, tokens: int) -> int:
        """Tensors of one block that are alive at a time."""
        x = self.shapes
        return 4 * tokens * (6 * x.d_model + 3 * x.d_mlp + 2 * x.head_dim * (x.n_heads + 2 * x.n_kv_heads))

    def of_model(
        self, held: Held, disk: int, working: int, work: Sequence[Work], *more: Held, flops: float = 0.0
    ) -> Estimate:
        """The estimate of a unit that uses the model, and loads it where it is not loaded yet."""
        holds = (held, *more)
        load = Work("load", 4.0 * held.count, held.dtype)
        memory = sum(h.bytes() for h in holds) + working
        return Estimate(disk, memory, flops or flops_of(list(work)), holds=holds, work=(load, *work))

    def dictionary(self, architecture: DictionaryConfig | None = None) -> DictionaryCosts:
        """The costs of one layer's dictionary (default: the study's own) on rows that are stored.

        Raises:
            MechstudyError: the architecture does not fit the model's width; ``where`` is the field of the study.
        """
        d, corpus = self.study.dictionaries, self.study.corpus
        architecture, t = architecture or d.architecture, d.training
        d_in, d_out = (self.shapes.width(kind) for kind in d.sites())
        try:
            n = architecture.width(d_in)
        except MechstudyError as error:
            where = f"dictionaries.architecture.{error.where}"
            raise MechstudyError(error.what, where=where, facts=error.facts, fix=error.fix) from None
        skip = architecture.kind == "skip_transcoder"
        step = sizes.step_work(architecture, t, n, d_in, d_out)
        first = sizes.statistics_rows(d_in, with_skip=skip)
        judged = min(d.evaluation_rows, corpus.held_out_rows * corpus.context)
        size = sizes.file_bytes(architecture, n, d_in, d_out)
        row_width = d_in if d_in == d_out and d.architecture.kind == "sae" else d_in + d_out
        store = 2.0 * corpus.train_rows * corpus.context * row_width  # read once, then cached
        work = (
            Work("train", t.steps * step.dense, t.precision, min(d_in, t.batch_size)),
            Work("sparse", t.steps * step.sparse),
            Work("stream", t.steps * (step.streamed_bytes + 4 * step.read_bytes)),
            Work("read", min(t.steps * step.read_bytes, store)),
            Work("train", 2.0 * first * d_in * (n + (d_out if skip else 0)), "float32", min(d_in, n)),
            Work("train", 2.0 * judged * n * d_in, "float32", min(d_in, n)),
            Work("stream", 8.0 * judged * (10 * (d_in + d_out) + n)),
            Work("write", size),
        )
        return DictionaryCosts(
            d_in,
            n_features=n,
            weights=4 * sizes.n_weights(architecture, n, d_in, d_out),
            memory=sizes.training_memory(architecture, t, n, d_in, d_out),
            disk=size + _OTHER_FILES + sizes.log_bytes(t),
            flops=t.steps * step.dense,
            work=work,
            payload={WEIGHTS: size},
            shapes={"width": f"{d_in} > {n:,} (k {architecture.k}) > {d_out}"},
        )

    def dictionaries(self, n_layers: int) -> Held:
        """The dictionaries of this many layers in memory; of published ones whose files are mapped, one at a time."""
        if not self.published:
            return Held("dictionaries", n_layers * self.dictionary().weights // 4)
        counts = [one.n_weights for one in self.published]
        dtypes = {str(one.about["dtype"]) for one in self.published}
        dtype = dtypes.pop() if len(dtypes) == 1 and dtypes <= set(ITEM_BYTES) else "float32"
        mapped = max(counts) if all(one.about["in_file"] for one in self.published) else None
        return Held("dictionaries", sum(counts), dtype, mapped, dtype)
