"""Studies: the study file, phases, units and their DAG."""
