"""Model families: how prompts and images become model inputs, and where an image's tokens lie."""
