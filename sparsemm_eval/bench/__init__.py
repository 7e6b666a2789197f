"""Measurements of speed and memory. Never part of the tests."""
