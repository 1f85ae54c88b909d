"""People and programs talking to checkpoints: a Gradio page and OpenAI's API over the same engines."""
