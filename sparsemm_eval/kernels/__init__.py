"""Single-token attention over a ragged KV store."""
