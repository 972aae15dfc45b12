"""The demo: tiny Llama models that are trained here, and the skills that they are asked for."""
