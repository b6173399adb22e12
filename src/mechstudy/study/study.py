"""The study file: everything that determines what is computed. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import ConfigDict, Field, field_validator, model_validator

from mechstudy.activations.config import PromptCaptureConfig
from mechstudy.activations.quota import parse_size
from mechstudy.behaviours.formats import FORMATS
from mechstudy.behaviours.registry import BEHAVIOURS
from mechstudy.behaviours.row_checks import KEYS, is_template
from mechstudy.behaviours.schema import AnswerSets
from mechstudy.circuits.config import AttributionConfig, ContrastConfig, no_graphs
from mechstudy.core.config import Config, Lines, load_config_with_lines
from mechstudy.core.errors import MechstudyError, nearest
from mechstudy.corpus.config import CorpusConfig
from mechstudy.dictionaries.config import DictionaryConfig, Frozen, TrainConfig
from mechstudy.interventions.config import InterventionConfig
from mechstudy.machine.runtime_options import RuntimeOptions
from mechstudy.models.sites import SiteKind
from mechstudy.study.phases import registry
from mechstudy.study.slurm_config import SlurmConfig
from mechstudy.study.unit import Retention
from mechstudy.verdict.config import VerdictConfig

# Fields of a behaviour on how its file is read.
READING = ("format", "counterfactual", "columns", "align", "corrupted", "answer_sets", "answer_tokens", "strict")
Dtype = Literal["float32", "bfloat16", "float16"]


class ModelConfig(Config):
    """The model, and how prompts are put to it."""

    optional: ClassVar[frozenset[str]] = frozenset({"chat_date"})

    source: str
    """`hf:<id>[@revision]`, `path:<folder>`, `gguf:<file>` or `pypi:<package>==<version>[#sha256=<hex>]`."""
    dtype: Dtype = "float32"
    """Precision of baselines, graphs and interventions; graphs need float32."""
    chat: bool = False
    """true: every prompt begins the reply to chat_instruction, in the model's chat template."""
    chat_instruction: str = "Continue the text."
    """The user's turn, where chat is true."""
    chat_date: str | None = None
    """`YYYY-MM-DD`, the date that a template with a clock writes; without it the day on which a run begins."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model; only for sources that you trust."""

    @field_validator("chat_date", mode="before")
    @classmethod
    def _is_a_date(cls, value: object) -> object:
        if value is None:
            return None
        try:
            return date.fromisoformat(str(value)).isoformat()
        except ValueError:
            raise MechstudyError(
                f"{value!r} is not a date", where="chat_date", fix="YYYY-MM-DD, for example 2025-01-31"
            ) from None


class BehaviourConfig(Config):
    """A built-in behaviour by name, or prompts of the user in a ``file`` (docs/reference/behaviours.md).

    A file has mechstudy's own keys, the shape of a published ``format``, or other keys that ``columns`` maps. The
    fields from ``format`` to ``strict`` are about a file.
    """

    optional: ClassVar[frozenset[str]] = frozenset(READING)

    name: str = Field(pattern=r"^[A-Za-z0-9_\-]+$")
    """A built-in behaviour, or the name of your own."""
    file: str | None = None
    """Your own prompts: .jsonl, .json, .csv, .tsv or .parquet, or `hf:OWNER/NAME[:CONFIG][:SPLIT][@REVISION]`."""
    n_train: int = Field(100, ge=1)
    """Prompt pairs on which circuits are found; of a file at most so many, sampled."""
    n_test: int = Field(100, ge=1)
    """Prompt pairs on which circuits are tested; of a file at most so many, sampled."""
    format: str | None = None
    """The published shape of the file, such as feature-circuits, ioi or mcqa."""
    counterfactual: str | None = None
    """Which corrupted prompt of the format, where it has several."""
    columns: dict[str, str] | None = None
    """The file's columns, by mechstudy's keys: `{clean: question, answer: " {capital}"}`."""
    align: Literal["ends"] | None = None
    """ends: clean and corrupted prompts may differ in length, and are aligned at both ends."""
    corrupted: Literal["other-line"] | None = None
    """other-line: corrupted prompts are taken from other lines of the file."""
    answer_sets: AnswerSets | None = None
    """How several answers of a line become one number: logsumexp (without it) or mean of their logits."""
    answer_tokens: Literal["first", "all"] | None = None
    """first (without it) compares first tokens of answers, all compares all their tokens, teacher-forced."""
    strict: bool | None = None
    """true: a line that cannot be used is an error; without it, it is left out and counted."""

    @model_validator(mode="after")
    def _readable(self) -> BehaviourConfig:
        asked = [name for name in READING if getattr(self, name) is not None]
        if asked and self.file is None:
            raise MechstudyError(f"{asked[0]} is about a file of prompts", where=asked[0], fix="file: <prompts>.jsonl")
        if self.format is not None and self.columns is not None:
            raise MechstudyError("format and columns both say how to read the file", where="columns", fix="one of them")
        if self.format is not None and self.format not in FORMATS:
            guess = nearest(self.format, FORMATS)
            raise MechstudyError(
                f"there is no format {self.format!r}",
                where="format",
                facts={"formats": ", ".join(FORMATS)},
                fix=f"did you mean {guess!r}?" if guess else "one of these, or columns:",
            )
        if self.counterfactual is not None and self.format is None:
            raise MechstudyError("counterfactual is one of a format's", where="counterfactual", fix="with format:")
        for key in self.columns or {}:
            if key not in KEYS:
                guess = nearest(key, KEYS)
                raise MechstudyError(
                    f"prompts have no {key!r}",
                    where="columns",
                    facts={"keys": ", ".join(KEYS)},
                    fix=f"did you mean {guess!r}?" if guess else "key: column",
                )
        for key, column in (self.columns or {}).items():
            if "{" in column and not is_template(column):
                raise MechstudyError(
                    f"{column!r} of {key!r} is no text with columns in braces",
                    where="columns",
                    fix="a column's name; or a text such as 'Q: {question} A:', with {{ and }} for braces themselves",
                )
        return self

    @model_validator(mode="after")
    def _known(self) -> BehaviourConfig:
        if self.file is None and self.name not in BEHAVIOURS:
            guess = nearest(self.name, BEHAVIOURS)
            raise MechstudyError(
                f"there is no built-in behaviour {self.name!r}",
                where="name",
                facts={"built in": ", ".join(sorted(BEHAVIOURS))},
                fix=f"did you mean {guess!r}?" if guess else "give your own prompts: file: <prompts>.jsonl",
            )
        return self


class BaselineConfig(Config):
    """The measurement of a behaviour, and the gate: one that the model does not show is not studied further."""

    min_accuracy: float = Field(0.8, ge=0, le=1)
    """The gate: the accuracy that every split must reach."""
    on_fail: Literal["stop", "continue"] = "stop"
    """stop: a behaviour below the gate is not studied further; continue: it is studied nevertheless."""
    bootstrap: int = Field(2000, ge=100)
    """Cluster resamples behind each interval."""


class VariantConfig(Config):
    """Another dictionary of every layer, from the same rows and by the same recipe, with its own initial weights.

    It is evaluated like the layer's own and compared with it (``agreement.json``), and verdicts choose a circuit with
    the variant of all layers and compare it with theirs. Without ``architecture`` it has the study's own, and the
    comparison shows the effect of the seed. A ``frozen`` encoder or decoder keeps its random initial weights: a control
    (2602.14111).
    """

    optional: ClassVar[frozenset[str]] = frozenset({"frozen"})

    name: str = Field(pattern=r"^[A-Za-z0-9_.\-]+$")
    """Its name, which is part of its unit's: `variant[12:NAME]`."""
    architecture: DictionaryConfig | None = None
    """Without it the study's own, so that only the seed differs."""
    frozen: Frozen | None = None
    """Matrix that keeps its random initial weights, encoder or decoder: a control."""


CONTROLS = (
    VariantConfig(name="frozen-encoder", frozen="encoder"),
    VariantConfig(name="frozen-decoder", frozen="decoder"),
)


class DictionariesConfig(Config):
    """One dictionary per layer. Transcoders read ``mlp_in`` and write ``mlp_out``; an SAE does both at ``site``.

    The corpus of a stream is read again for every epoch. ``source: auto`` streams where the disk cannot hold a store or
    a store would save no forward pass; `plan` says which and why, and a run keeps its first choice (``resolved.json``).
    The source is part of artifact ids: a study that must be the same on two machines names it. With ``from``,
    ``layers`` selects among the published dictionaries, and ``architecture`` and ``site`` are theirs. The report says
    where a trained dictionary does not beat its ``controls``.
    """

    model_config = ConfigDict(populate_by_name=True)
    optional: ClassVar[frozenset[str]] = frozenset({"from", "controls"})

    published: str | tuple[str, ...] | dict[int, str] | None = Field(default=None, alias="from")
    """Published dictionaries in place of training: a folder, a run, `hf:owner/name`, `saelens:RELEASE/ID`, a list of
    these, or `{layer: place}`."""
    layers: str | int | tuple[int | str, ...] = "all"
    """Layers that get a dictionary: `all`, `10-24`, `3,5,8-10` or a list."""
    site: SiteKind = "mlp_out"
    """The site of an SAE; transcoders read mlp_in and write mlp_out."""
    architecture: DictionaryConfig = DictionaryConfig()
    training: TrainConfig = TrainConfig()
    model_dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Precision of the forward pass over the corpus; auto: bfloat16 where this machine is faster in it."""
    store_dtype: Literal["bfloat16", "float32", "int8"] = "bfloat16"
    """Precision of stored rows; int8 takes half of bfloat16's disk, and its loss is recorded (quantisation_fvu)."""
    layers_per_pass: int = Field(10, ge=1)
    """Layers that are captured, trained and deleted before the next; bounds the disk, or a stream's memory."""
    source: Literal["auto", "store", "stream", "published"] = "store"
    """store captures rows first; stream trains from forward passes as they happen, with nothing on disk; auto: `plan`
    chooses; published follows from `from`."""
    window_rows: int = Field(65_536, ge=1_024)
    """Of a stream: rows of every site in memory, from which batches are drawn."""
    evaluation_rows: int = Field(16_384, ge=256)
    """Held-out rows on which each dictionary's reconstruction is evaluated."""
    evaluation_tokens: int = Field(4096, ge=128)
    """Held-out tokens on which its effect on the model's loss is measured."""
    variants: tuple[VariantConfig, ...] = ()
    """More dictionaries of every layer from the same rows: other k, architectures or seeds."""
    controls: Literal["frozen"] | None = None
    """frozen: two more variants, with a frozen random encoder and a frozen random decoder."""

    @property
    def every_variant(self) -> tuple[VariantConfig, ...]:
        """The variants, and the controls."""
        return (*self.variants, *(CONTROLS if self.controls else ()))

    @model_validator(mode="after")
    def _one_dictionary_a_layer(self) -> DictionariesConfig:
        if self.architecture.n_sites > 1:
            raise MechstudyError(
                f"a study trains one dictionary per layer, and a {self.architecture.kind} reads several layers",
                where="architecture.kind",
                fix="sae, transcoder or skip_transcoder here; crosscoders and clts are trained in Python "
                "(docs/reference/dictionaries.md)",
            )
        return self

    @model_validator(mode="after")
    def _published_or_trained(self) -> DictionariesConfig:
        trained = {"architecture", "training", "variants", "controls"} & self.model_fields_set
        if self.published is not None and trained and self.source != "published":
            raise MechstudyError(
                f"`from` names published dictionaries, and {' and '.join(sorted(trained))} how to train some",
                where=min(trained),
                fix="one of the two",
            )
        if self.published is None and self.source == "published":
            raise MechstudyError("published dictionaries are named by `from`", where="source", fix="from: <address>")
        return self

    @model_validator(mode="after")
    def _variants_of_the_same_rows(self) -> DictionariesConfig:
        names = [variant.name for variant in self.every_variant]
        if repeated := [name for name in names if names.count(name) > 1]:
            raise MechstudyError(f"two variants are called {repeated[0]!r}", where="variants")
        for number, variant in enumerate(self.variants):
            other = variant.architecture
            if other is not None and (other.n_sites > 1 or (other.kind == "sae") != (self.architecture.kind == "sae")):
                raise MechstudyError(
                    f"variant {variant.name!r}, a {other.kind}, reads other rows than a {self.architecture.kind}",
                    where=f"variants.{number}.architecture.kind",
                    fix="sae for all, or transcoders for all",
                )
        return self

    def sites(self) -> tuple[str, str]:
        """The kinds of site that a dictionary reads and writes."""
        return (self.site, self.site) if self.architecture.kind == "sae" else ("mlp_in", "mlp_out")


class FeaturesConfig(Config):
    """Feature pages: the part of the corpus that is searched for examples, and the number shown."""

    documents: int = Field(384, ge=1)
    """Documents of the corpus that are searched for examples."""
    examples: int = Field(8, ge=1)
    """Examples of each feature."""
    window: int = Field(24, ge=4)
    """Tokens of each example."""
    top_logits: int = Field(8, ge=1)
    """Tokens listed that a feature raises most, and as many that it lowers most."""
    per_behaviour: int = Field(150, ge=1)
    """Features of each behaviour that get a page, at most."""


class ComputeConfig(RuntimeOptions):
    """Options of a study's runs. They change no result and are not part of any artifact's id.

    See docs/how-to/slurm.md, docs/how-to/budget.md and docs/how-to/performance.md.
    """

    slurm: SlurmConfig = SlurmConfig()
    profile: str | None = Field(None, pattern=r"^[A-Za-z0-9_.\-]+$")
    """Name of a file with such resources: `~/.config/mechstudy/profiles/NAME.yaml`."""
    hardware: str | None = None
    """Profile that plan and cost use: a100-40gb, a100-80gb, h100 or a file; without it this machine."""
    su_per_gpu_hour: float | None = Field(None, ge=0)
    """Service units per GPU-hour, in place of the profile's."""
    price_per_su: float | None = Field(None, ge=0)
    """Price of a service unit, in place of the profile's."""

    @field_validator("expected_usage")
    @classmethod
    def _ranges(cls, value: Mapping[str, tuple[float, float]]) -> Mapping[str, tuple[float, float]]:
        for phase, (low, high) in value.items():
            registry.check_name(phase)
            if not 0 <= low < high <= 100:
                raise MechstudyError(f"{phase}: {low:g} to {high:g} is no range", fix=f"in per cent: {phase}: [40, 60]")
        return value


class StorageConfig(Config):
    """Retention and quota. They change no result and are not part of any artifact's id (docs/how-to/storage.md).

    Captured corpus rows are deleted (``discard``) once every dictionary that needs them is trained;
    ``retain: {capture: keep}`` keeps them, ``regenerate`` leaves it to `mechstudy clean`. ``activations: keep`` is an
    earlier spelling of the first.
    """

    retain: Mapping[str, Retention] = {}
    """Retention of kinds of artifacts, where it is not the default: `{capture: keep}`."""
    quota: str | None = None
    """Most bytes of the run's artifacts, such as `50GB` or `1.5TiB`; a study that needs more is refused before it
    writes."""

    @model_validator(mode="before")
    @classmethod
    def _earlier_spelling(cls, value: Any) -> Any:
        if not isinstance(value, Mapping) or "activations" not in value:
            return value
        rest = {key: item for key, item in value.items() if key != "activations"}
        activations = value["activations"]
        if activations not in ("keep", "discard"):
            raise MechstudyError(f"activations is keep or discard, not {activations!r}", fix="retain: {capture: keep}")
        retain = rest.get("retain") or {}
        if isinstance(retain, Mapping) and retain.get("capture", activations) != activations:
            raise MechstudyError(
                f"activations says {activations}, and retain.capture {retain['capture']}", fix="leave out activations"
            )
        return {**rest, "retain": {"capture": activations, **retain}} if isinstance(retain, Mapping) else rest

    @field_validator("retain")
    @classmethod
    def _known_kinds(cls, value: Mapping[str, Retention]) -> Mapping[str, Retention]:
        registry.check_kinds(value)
        return value

    @field_validator("quota")
    @classmethod
    def _a_size(cls, value: str | None) -> str | None:
        if value is not None:
            parse_size(value)
        return value

    @property
    def quota_bytes(self) -> int | None:
        """The quota in bytes."""
        return None if self.quota is None else parse_size(self.quota)


class Study(Config):
    """A whole study. Every seed in it derives from ``seed``.

    Without behaviours (``behaviours: []``) it trains and evaluates dictionaries, and has no graphs.
    """

    name: str = Field(pattern=r"^[A-Za-z0-9_.\-]+$")
    """The study's name; its run is the folder `runs/<name>`."""
    seed: int = Field(0, ge=0)
    """The seed from which all others are derived."""
    model: ModelConfig
    behaviours: tuple[BehaviourConfig, ...]
    """The behaviours; none (`[]`) trains and evaluates dictionaries only."""
    baseline: BaselineConfig = BaselineConfig()
    capture: PromptCaptureConfig = PromptCaptureConfig()
    corpus: CorpusConfig = CorpusConfig(tokens=200_000)
    dictionaries: DictionariesConfig = DictionariesConfig()
    attribution: AttributionConfig = AttributionConfig()
    features: FeaturesConfig = FeaturesConfig()
    interventions: InterventionConfig = InterventionConfig()
    verdict: VerdictConfig = VerdictConfig()
    compute: ComputeConfig = ComputeConfig()
    storage: StorageConfig = StorageConfig()

    @field_validator("behaviours")
    @classmethod
    def _distinct(cls, value: tuple[BehaviourConfig, ...]) -> tuple[BehaviourConfig, ...]:
        names = [b.name for b in value]
        if repeated := [n for n in names if names.count(n) > 1]:
            raise MechstudyError(f"behaviour {repeated[0]!r} is named twice")
        return value

    @model_validator(mode="after")
    def _graphs_can_be_made(self) -> Study:
        if self.no_graphs is None and self.model.dtype != "float32":
            raise MechstudyError(
                f"attribution graphs need fp32 weights, the model is to be loaded as {self.model.dtype}",
                where="model",
                fix="dtype: float32 (dictionaries.model_dtype may be another)",
            )
        return self

    @model_validator(mode="after")
    def _neurons_or_dictionaries(self) -> Study:
        if self.attribution.basis == "neurons" and self.dictionaries.published is not None:
            raise MechstudyError(
                "dictionaries are named, and the nodes of graphs are to be neurons",
                where="attribution.basis",
                fix="basis: dictionaries, or mixed; or no dictionaries.from",
            )
        return self

    @model_validator(mode="after")
    def _ranked_by_what_graphs_have(self) -> Study:
        rank_by, replace_by = self.interventions.rank_by, self.attribution.contrast.replace_by
        if rank_by in ("mean", "zero") and replace_by not in ("auto", rank_by):
            raise MechstudyError(
                f"features are to be ranked by {rank_by}, and the graphs' effects are of replacing by {replace_by}",
                where="interventions.rank_by",
                fix=f"rank_by: contrast, or attribution.contrast.replace_by: {rank_by}",
            )
        return self

    @property
    def contrast(self) -> ContrastConfig:
        """How graphs predict the effects of replacing nodes: as they are asked to, or as features are ranked."""
        asked, rank_by = self.attribution.contrast, self.interventions.rank_by
        return asked.model_copy(update={"replace_by": rank_by}) if rank_by in ("mean", "zero") else asked

    @property
    def no_graphs(self) -> str | None:
        """Why the study has no graphs, and so no feature pages or interventions; None where it has."""
        d = self.dictionaries
        return no_graphs(len(self.behaviours), self.attribution.basis, d.architecture.kind, d.site)


def load_study(path: Path, overrides: Sequence[str] = ()) -> tuple[Study, Lines]:
    """The study of a file, and the lines of its fields, for errors that only the model can reveal.

    Raises:
        MechstudyError: the file is not a study (with file and line).
    """
    return load_config_with_lines(path, Study, overrides)
