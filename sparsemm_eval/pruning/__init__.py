"""Pruners: which image tokens of a prompt the text model, or its upper layers, never get to see."""
