"""What makes shards a model that can be used and uploaded."""
