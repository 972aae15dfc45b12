"""shardmerge: merged checkpoints from mergekit recipes, one shard at a time.

The library that the rules' scripts share. Nothing in it knows Snakemake, and nothing that
plans (recipe, lock, plan) imports torch.
"""

__version__ = "0.1.0"
