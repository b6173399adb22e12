"""Behaviours: families of contrastive prompt pairs, users' own prompts, and how well a model shows them."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
