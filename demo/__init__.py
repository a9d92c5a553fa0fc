"""The demo checkpoint: a tiny Gemma 3n that adds numbers and turns commands into JSON calls."""
