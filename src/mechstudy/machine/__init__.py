"""Memory, devices, precision, process groups and back-off when memory runs out."""
