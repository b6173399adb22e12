"""Capture of activations, the activation store on disk, and batches of its rows for training."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
