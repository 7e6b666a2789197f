"""The answer loop: requests in, prompts and images, answers out, failures accounted for."""
