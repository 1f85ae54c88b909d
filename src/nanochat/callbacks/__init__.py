"""What happens every N optimizer steps. In the order given: save, then evaluate, then sample, then report."""
