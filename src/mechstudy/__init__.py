"""mechstudy: from a behaviour of an open language model to a causally verified circuit."""

__version__ = "0.1.0"
