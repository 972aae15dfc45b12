"""The command `shardmerge`: a thin door to the workflow's targets, and what needs no workflow."""
