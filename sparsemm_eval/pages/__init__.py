"""The embedded default: rendered pages of text, tiny readers trained on them, and data for the page tasks.

Everything here works without a network: pages are drawn from a seed, the readers are real transformers
models of a few megabytes, and the task data is a small file.
"""
