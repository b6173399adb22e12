"""Formats of the ecosystem: Neuronpedia and circuit-tracer graphs."""
