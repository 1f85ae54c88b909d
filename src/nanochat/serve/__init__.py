"""Serving checkpoints: a page, OpenAI's API and a terminal over the same engines."""
