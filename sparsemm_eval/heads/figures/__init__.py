"""Pictures of heads: the map of their scores, and where they look."""
