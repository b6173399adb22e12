from .cache import cache_folder as cache_folder
from .cache import machine_id as machine_id
from .cache import recall as recall
from .cache import remember as remember
from .cache import remembered as remembered
from .cgroup import usable_cores as usable_cores
from .hardware import cpu as cpu
from .hardware import nvidia_smi as nvidia_smi
from .memory import available_memory_bytes as available_memory_bytes
from .memory import memory_limit_bytes as memory_limit_bytes
from .memory import peak_rss_bytes as peak_rss_bytes
from .memory import reset_peak_rss as reset_peak_rss
from .memory import total_memory_bytes as total_memory_bytes
from .numerics import exact_products as exact_products
from .numerics import float32_products as float32_products
from .runtime import Runtime as Runtime
from .runtime import is_out_of_memory as is_out_of_memory
from .runtime import oom_backoff as oom_backoff

__all__ = [
    "Runtime",
    "available_memory_bytes",
    "cache_folder",
    "cpu",
    "exact_products",
    "float32_products",
    "is_out_of_memory",
    "machine_id",
    "memory_limit_bytes",
    "nvidia_smi",
    "oom_backoff",
    "peak_rss_bytes",
    "recall",
    "remember",
    "remembered",
    "reset_peak_rss",
    "total_memory_bytes",
    "usable_cores",
]
