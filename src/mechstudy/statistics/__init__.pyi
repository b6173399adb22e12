from .association import slopes as slopes
from .association import spearman as spearman
from .bootstrap import Estimate as Estimate
from .bootstrap import cluster_bootstrap as cluster_bootstrap
from .bootstrap import ratio as ratio
from .clusters import cluster_sums as cluster_sums
from .false_discovery import benjamini_hochberg as benjamini_hochberg
from .permutation import sign_flip_p as sign_flip_p
