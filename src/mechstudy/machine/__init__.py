"""Hardware, memory, cgroups, precision, process groups and back-off when memory runs out."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
