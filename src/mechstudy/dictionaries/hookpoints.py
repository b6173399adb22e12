"""Checks that a dictionary of a module's output is one of a site of the model it is used on."""

from __future__ import annotations

from mechstudy.core.errors import MechstudyError
from mechstudy.dictionaries.dictionary import Dictionary
from mechstudy.dictionaries.stored import HOOKPOINT
from mechstudy.models.language_model import LanguageModel


def refuse_other_tensor(model: LanguageModel, dictionary: Dictionary) -> None:
    """Refuse a dictionary of a module's own output on a model that norms that output before adding it.

    A file that names a module and no model (sparsify's ``layers.3.mlp``) is read as one of `mlp_out` or `attn_out`,
    which it is in families without such a norm.

    Raises:
        MechstudyError: the site, of this model, is another tensor.
    """
    hookpoint, site = dictionary.metadata.get(HOOKPOINT), dictionary.cfg.site_out
    kind = site.partition(".")[0]
    norm = {"mlp_out": model.arch.norm_mlp_post, "attn_out": model.arch.norm_attn_post}.get(kind)
    if hookpoint and norm:
        raise MechstudyError(
            f"the dictionary is of the output of {hookpoint}, and {site} of this model is after {norm}",
            facts={"model": model.name, "hookpoint": str(hookpoint)},
            fix=f"a dictionary that is trained on the output of {norm}, which is what the layer adds",
        )
