"""Hardware, memory, cgroups, precision, process groups and back-off when memory runs out."""
