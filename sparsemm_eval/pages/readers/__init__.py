"""Tiny readers: transformers models that read pages, and how well they do."""
