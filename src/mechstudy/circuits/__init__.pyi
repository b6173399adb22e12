from .aggregate import aggregate_of as aggregate_of
from .aggregate import node_id as node_id
from .aggregate import prompt_record as prompt_record
from .aggregate import scores_of as scores_of
from .attribution import attribute as attribute
from .config import AttributionConfig as AttributionConfig
from .config import no_graphs as no_graphs
from .frozen import FrozenForward as FrozenForward
from .graph import Graph as Graph
from .graph import Ledger as Ledger
from .graph import LogitNode as LogitNode
from .graph import Pruned as Pruned
from .graph import Source as Source
from .graph import prune as prune
from .graph_frames import BehaviourFrames as BehaviourFrames
from .graph_frames import PromptFrames as PromptFrames
from .influence import Scores as Scores
from .influence import total_effects as total_effects
from .linearised import LinearisedPrompt as LinearisedPrompt
from .linearised import applies_at as applies_at
from .linearised import linearise as linearise
from .live import live_effects as live_effects
from .live import live_gradients as live_gradients
from .neuronpedia import graph_json as graph_json
from .prompt_graph import ExplainedPrompt as ExplainedPrompt
from .prompt_graph import explain_prompt as explain_prompt
from .prompt_graph import explain_question as explain_question
from .question import Question as Question
from .rows import SourceIndex as SourceIndex
from .rows import Target as Target
from .rows import direct_effects as direct_effects
from .rows import feature_targets as feature_targets

__all__ = [
    "AttributionConfig",
    "BehaviourFrames",
    "ExplainedPrompt",
    "FrozenForward",
    "Graph",
    "Ledger",
    "LinearisedPrompt",
    "LogitNode",
    "PromptFrames",
    "Pruned",
    "Question",
    "Scores",
    "Source",
    "SourceIndex",
    "Target",
    "aggregate_of",
    "applies_at",
    "attribute",
    "direct_effects",
    "explain_prompt",
    "explain_question",
    "feature_targets",
    "graph_json",
    "linearise",
    "live_effects",
    "live_gradients",
    "no_graphs",
    "node_id",
    "prompt_record",
    "prune",
    "scores_of",
    "total_effects",
]
