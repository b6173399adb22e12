from .examples import FeatureStatistics as FeatureStatistics
from .examples import collect_features as collect_features
from .examples import example_windows as example_windows
from .examples import logit_effects as logit_effects
from .pages import feature_pages as feature_pages
from .selection import features_in_graphs as features_in_graphs
