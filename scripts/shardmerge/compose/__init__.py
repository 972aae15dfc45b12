"""From a recipe and its lock to every tensor of every stage as an expression."""
