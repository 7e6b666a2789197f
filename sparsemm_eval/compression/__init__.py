"""The method: importance, allocation, selection, the ragged cache, and attaching them to a model."""
