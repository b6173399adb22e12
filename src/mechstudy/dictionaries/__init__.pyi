from .config import DictionaryConfig as DictionaryConfig
from .config import TrainConfig as TrainConfig
from .cross_layer_transcoder import CrossLayerTranscoder as CrossLayerTranscoder
from .crosscoder import decoder_by_site as decoder_by_site
from .crosscoder import relative_norms as relative_norms
from .dictionary import Dictionary as Dictionary
from .evaluation.bench import synthetic as synthetic
from .evaluation.model_effect import language_model_effect as language_model_effect
from .evaluation.reconstruction import evaluate as evaluate
from .evaluation.reconstruction import fvu as fvu
from .evaluation.record import EVALUATION_BATCH as EVALUATION_BATCH
from .evaluation.record import evaluation_record as evaluation_record
from .evaluation.stability import compare as compare
from .evaluation.stability import compare_all as compare_all
from .evaluation.stability import match_directions as match_directions
from .evaluation.synthetic import SyntheticWorld as SyntheticWorld
from .evaluation.synthetic import WorldConfig as WorldConfig
from .formats.describe import describe as describe
from .formats.describe import metrics_of as metrics_of
from .formats.hub import is_hub as is_hub
from .formats.hub import pull as pull
from .health_config import HealthConfig as HealthConfig
from .loading import DictionarySet as DictionarySet
from .loading import load_dictionaries as load_dictionaries
from .loading import load_dictionary as load_dictionary
from .stored import DictionaryMeta as DictionaryMeta
from .training.data_parallel import current_process_group as current_process_group
from .training.health import HealthWarning as HealthWarning
from .training.row_health import store_findings as store_findings
from .training.row_health import stream_findings as stream_findings
from .training.rows import FirstBatches as FirstBatches
from .training.scalars import training_time as training_time
from .training.train_many import Job as Job
from .training.train_many import View as View
from .training.train_many import train_many as train_many
from .training.trainer import train as train

__all__ = [
    "EVALUATION_BATCH",
    "CrossLayerTranscoder",
    "Dictionary",
    "DictionaryConfig",
    "DictionaryMeta",
    "DictionarySet",
    "FirstBatches",
    "HealthConfig",
    "HealthWarning",
    "Job",
    "SyntheticWorld",
    "TrainConfig",
    "View",
    "WorldConfig",
    "compare",
    "compare_all",
    "current_process_group",
    "decoder_by_site",
    "describe",
    "evaluate",
    "evaluation_record",
    "fvu",
    "is_hub",
    "language_model_effect",
    "load_dictionaries",
    "load_dictionary",
    "match_directions",
    "metrics_of",
    "pull",
    "relative_norms",
    "store_findings",
    "stream_findings",
    "synthetic",
    "train",
    "train_many",
    "training_time",
]
