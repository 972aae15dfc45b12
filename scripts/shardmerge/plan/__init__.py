"""The plan: all jobs of a workflow, decided before the first byte of weights moves."""
