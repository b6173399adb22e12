from .capture import capture_corpus as capture_corpus
from .capture import capture_corpus_part as capture_corpus_part
from .config import CaptureConfig as CaptureConfig
from .config import Positions as Positions
from .config import PromptCaptureConfig as PromptCaptureConfig
from .config import store_bytes as store_bytes
from .mixing import store_mixing as store_mixing
from .multi_site_batches import StoreBatches as StoreBatches
from .multi_site_batches import StreamBatches as StreamBatches
from .prompt_capture import PromptBatches as PromptBatches
from .prompt_capture import capture_prompts as capture_prompts
from .prompt_capture import keep_prompts as keep_prompts
from .quota import Quota as Quota
from .quota import require_room as require_room
from .reader import RowReader as RowReader
from .staging import staged as staged
from .store import Store as Store
from .store_parts import part_file as part_file
from .store_parts import remove_parts as remove_parts
from .striping import stripe as stripe
from .texts import Activations as Activations
from .writer import StoreWriter as StoreWriter
from .writer import merge as merge

__all__ = [
    "Activations",
    "CaptureConfig",
    "Positions",
    "PromptBatches",
    "PromptCaptureConfig",
    "Quota",
    "RowReader",
    "Store",
    "StoreBatches",
    "StoreWriter",
    "StreamBatches",
    "capture_corpus",
    "capture_corpus_part",
    "capture_prompts",
    "keep_prompts",
    "merge",
    "part_file",
    "remove_parts",
    "require_room",
    "staged",
    "store_bytes",
    "store_mixing",
    "stripe",
]
