"""The embedded default: rendered pages of text, data sets of them, and tiny readers trained on them.

Everything here works without a network.
"""
