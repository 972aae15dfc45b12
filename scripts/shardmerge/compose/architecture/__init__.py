"""What tensor names and config.json tell of an architecture."""
