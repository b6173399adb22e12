from .config import VerdictConfig as VerdictConfig
from .criteria import Criterion as Criterion
from .result import Verdict as Verdict
from .variants import Variant as Variant
from .verify import verify as verify
