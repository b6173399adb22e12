"""What units used of the machine: the file beside each artifact, the ranges to expect, rules that name bottlenecks."""
