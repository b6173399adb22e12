from .activations.texts import Activations as Activations
from .activations.texts import capture as capture
from .api import BehaviourGraph as BehaviourGraph
from .api import PromptGraph as PromptGraph
from .api import Run as Run
from .api import Study as Study
from .api import attribute as attribute
from .api import load_dictionaries as load_dictionaries
from .api import load_graph as load_graph
from .api import open_run as open_run
from .api import train as train
from .behaviours import PromptPair as PromptPair
from .behaviours import Prompts as Prompts
from .behaviours import load_prompts as load_prompts
from .behaviours import score as score
from .circuits import AttributionConfig as AttributionConfig
from .core.errors import MechstudyError as MechstudyError
from .dictionaries import Dictionary as Dictionary
from .dictionaries import DictionaryConfig as DictionaryConfig
from .dictionaries import DictionarySet as DictionarySet
from .dictionaries import TrainConfig as TrainConfig
from .dictionaries import evaluate as evaluate
from .interventions import Ablation as Ablation
from .interventions import FeatureAt as FeatureAt
from .interventions import ablate as ablate
from .interventions import generate as generate
from .models import LanguageModel as LanguageModel
from .models import Site as Site
from .models import load_model as load_model

__version__: str

__all__ = [
    "Ablation",
    "Activations",
    "AttributionConfig",
    "BehaviourGraph",
    "Dictionary",
    "DictionaryConfig",
    "DictionarySet",
    "FeatureAt",
    "LanguageModel",
    "MechstudyError",
    "PromptGraph",
    "PromptPair",
    "Prompts",
    "Run",
    "Site",
    "Study",
    "TrainConfig",
    "ablate",
    "attribute",
    "capture",
    "evaluate",
    "generate",
    "load_dictionaries",
    "load_graph",
    "load_model",
    "load_prompts",
    "open_run",
    "score",
    "train",
]
