"""Functions from a model to numbers."""
