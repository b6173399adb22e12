from .dag import Evaluation as Evaluation
from .dag import Graph as Graph
from .dag import Node as Node
from .phases.base import Phase as Phase
from .run_folder import RunFolder as RunFolder
from .slurm_config import SlurmConfig as SlurmConfig
from .study import Study as Study
from .study import load_study as load_study
from .unit import Input as Input
from .unit import Unit as Unit
from .unit_json import unit_as_json as unit_as_json
from .unit_json import unit_from_json as unit_from_json
from .units import build_units as build_units

__all__ = [
    "Evaluation",
    "Graph",
    "Input",
    "Node",
    "Phase",
    "RunFolder",
    "SlurmConfig",
    "Study",
    "Unit",
    "build_units",
    "load_study",
    "unit_as_json",
    "unit_from_json",
]
