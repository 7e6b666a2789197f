"""Training a tiny reader from nothing."""
