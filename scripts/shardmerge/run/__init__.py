"""The jobs of a run: command lines, claims, shared processes, paths of results."""
