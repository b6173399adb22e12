"""Whether a circuit's claim holds: evidence on prompts that nothing was chosen on, and a written rule."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
