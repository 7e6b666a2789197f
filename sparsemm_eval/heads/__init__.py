"""Finding visual heads: heads whose strongest attention lies on what the model is about to say."""
