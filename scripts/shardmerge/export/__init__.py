"""Other forms of a finished model, made by other projects' tools: GGUF and what comes after it."""
