"""What happens every N optimizer steps. In the order given: report, save, evaluate, sample."""
