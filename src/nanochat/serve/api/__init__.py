"""HTTP APIs over a service: OpenAI's and the original's."""
