"""Whether what was built is right: shards recomputed, models loaded."""
