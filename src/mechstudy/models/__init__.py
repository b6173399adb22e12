"""Model sources, the architecture table, and the language model with its sites and partial forward passes."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
