"""The study file, its units and their DAG."""
