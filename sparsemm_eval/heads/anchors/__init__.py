"""Anchors: images with text whose place in the image is known."""
