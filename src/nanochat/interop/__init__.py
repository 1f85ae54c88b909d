"""Models from elsewhere and for elsewhere: nanochat's own checkpoints so far."""
