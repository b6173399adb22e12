"""Checks that a dictionary of a module's output is one of a site of the model it is used on. Torch-free."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mechstudy.core.errors import MechstudyError
from mechstudy.dictionaries.formats.hooks import HOOKPOINT, norm_between
from mechstudy.models.families import Family

if TYPE_CHECKING:
    from mechstudy.dictionaries.dictionary import Dictionary
    from mechstudy.models.language_model import LanguageModel


def refuse_other_tensor(model: LanguageModel, dictionary: Dictionary) -> None:
    """Refuse a dictionary of a module's own output on a model that norms that output before adding it.

    A file that names a module and no model (sparsify's ``layers.3.mlp``) is read as one of `mlp_out` or `attn_out`,
    which it is in families without such a norm.

    Raises:
        MechstudyError: the site, of this model, is another tensor.
    """
    hookpoint = dictionary.metadata.get(HOOKPOINT)
    refuse_normed_output(hookpoint, dictionary.cfg.site_out, model.arch, facts={"model": model.name})


def refuse_normed_output(
    hookpoint: object, site: str, family: Family, *, facts: dict[str, str], where: str | None = None
) -> None:
    """As `refuse_other_tensor`, before the model is loaded.

    Args:
        hookpoint: the module whose output the dictionary is of, as its files name it; None where they name none.
        site: that it is used at.
        family: of the model.
        facts: of the error: the model, the file.
        where: the field of the study.

    Raises:
        MechstudyError: as there.
    """
    norm = norm_between(str(hookpoint), family) if hookpoint else None
    if norm is not None:
        raise MechstudyError(
            f"the dictionary is of the output of {hookpoint}, and {site} of this model is after {norm}",
            where=where,
            facts={**facts, "hookpoint": str(hookpoint), "family": family.name},
            fix=f"a dictionary that is trained on the output of {norm}, which is what the layer adds",
        )
