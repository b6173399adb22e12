"""A Slurm cluster of one node for tests: real daemons on loopback, in a folder of its own, two pretend GPUs.

``python -m tests.slurm.cluster up``, ``down`` and ``run -- COMMAND``; see docs/how-to/slurm-testing.md. It uses the
standard library only.
"""
