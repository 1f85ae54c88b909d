"""Models of other projects: reading nanochat's own checkpoints."""
