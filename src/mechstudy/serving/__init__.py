"""A run's report in the browser of this machine, with its model at hand: other prompts, steering, subgraphs."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
