"""All that knows transformers models: their text decoder, attention, images, checkpoints and families."""
