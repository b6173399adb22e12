"""The DAG of units, the local runner, plan and status."""
