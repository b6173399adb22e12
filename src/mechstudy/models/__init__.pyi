from .compiling import compiled as compiled
from .language_model import LanguageModel as LanguageModel
from .language_model import Output as Output
from .loading import load_folder as load_folder
from .loading import load_model as load_model
from .local_files import local_folder as local_folder
from .precision import faster_dtype as faster_dtype
from .sites import Site as Site
from .sites import parse_layers as parse_layers
from .sources import read_config as read_config
from .sources import resolve_source as resolve_source
from .sources import weight_files as weight_files
from .validate import validate_model as validate_model

__all__ = [
    "LanguageModel",
    "Output",
    "Site",
    "compiled",
    "faster_dtype",
    "load_folder",
    "load_model",
    "local_folder",
    "parse_layers",
    "read_config",
    "resolve_source",
    "validate_model",
    "weight_files",
]
