from .ablation import Ablation as Ablation
from .ablation import PromptEffect as PromptEffect
from .ablation import ablate as ablate
from .config import InterventionConfig as InterventionConfig
from .config import PatchingConfig as PatchingConfig
from .controls import matched_controls as matched_controls
from .edges import EdgeCheck as EdgeCheck
from .edges import EdgeInstance as EdgeInstance
from .edges import edge_checks as edge_checks
from .edges import measure_edges as measure_edges
from .effects import run_interventions as run_interventions
from .engine import AddVector as AddVector
from .engine import CleanRun as CleanRun
from .engine import ReplaceVector as ReplaceVector
from .engine import SetFeature as SetFeature
from .engine import clean_run as clean_run
from .engine import edited_run as edited_run
from .features import FeatureAt as FeatureAt
from .features import FeatureGroup as FeatureGroup
from .features import NamedActivations as NamedActivations
from .features import feature_at as feature_at
from .features import feature_groups as feature_groups
from .features import features_at as features_at
from .features import positions_named as positions_named
from .features import recurring_features as recurring_features
from .generation import generate as generate
from .generation import generate_tokens as generate_tokens
from .generation import steering_vectors as steering_vectors
from .metric import kl_divergence as kl_divergence
from .metric import logit_difference as logit_difference
from .results import read_csv as read_csv
from .samples import Plan as Plan
from .samples import build_plan as build_plan
from .summary import PairedTest as PairedTest
from .summary import summarise as summarise

__all__ = [
    "Ablation",
    "AddVector",
    "CleanRun",
    "EdgeCheck",
    "EdgeInstance",
    "FeatureAt",
    "FeatureGroup",
    "InterventionConfig",
    "NamedActivations",
    "PairedTest",
    "PatchingConfig",
    "Plan",
    "PromptEffect",
    "ReplaceVector",
    "SetFeature",
    "ablate",
    "build_plan",
    "clean_run",
    "edge_checks",
    "edited_run",
    "feature_at",
    "feature_groups",
    "features_at",
    "generate",
    "generate_tokens",
    "kl_divergence",
    "logit_difference",
    "matched_controls",
    "measure_edges",
    "positions_named",
    "read_csv",
    "recurring_features",
    "run_interventions",
    "steering_vectors",
    "summarise",
]
