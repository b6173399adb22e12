"""Several processes for one unit: one leads and publishes, the others do their shares of its work.

The leader is the process that runs the unit anyway. The others are started by it (`local`) or by torchrun
(`torchrun`); both kinds are handed tasks (`task`), and say how they ended. What they made lies in the unit's partial
folder, so that a unit which was interrupted goes on with it, by whichever number of processes.
"""
