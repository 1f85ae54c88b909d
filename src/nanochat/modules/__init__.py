"""LightningModules: one per phase, one loss each, around the same GPT."""
