from .attribution import attribute as attribute
from .dictionaries import load_dictionaries as load_dictionaries
from .dictionaries import train as train
from .graphs import BehaviourGraph as BehaviourGraph
from .graphs import PromptGraph as PromptGraph
from .graphs import load_graph as load_graph
from .runs import Run as Run
from .runs import open_run as open_run
from .studies import Study as Study

__all__ = [
    "BehaviourGraph",
    "PromptGraph",
    "Run",
    "Study",
    "attribute",
    "load_dictionaries",
    "load_graph",
    "open_run",
    "train",
]
