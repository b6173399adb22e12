"""The functions and objects of `import mechstudy as ms`: text in, objects and polars frames out.

Each is a thin layer over the functions that the phases of a study call.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
