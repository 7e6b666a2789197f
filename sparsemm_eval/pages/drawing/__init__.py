"""Pages of text drawn from a seed, the box of every character known."""
