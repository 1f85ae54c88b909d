"""OpenAI's API, and the original's, over a service."""
