"""nanochat: train small chat models, from text to chat, as Hydra-composed Lightning runs."""

__version__ = "0.1.0"
