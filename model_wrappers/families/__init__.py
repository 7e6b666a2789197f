"""Model families: how prompts and images become model inputs."""
