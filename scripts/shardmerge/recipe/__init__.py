"""What a user writes: recipes and the configuration, read and checked."""
