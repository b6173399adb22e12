"""Use of the machine by each unit: sampling, summaries, bottlenecks, profiles and memory snapshots."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
