"""Finding visual heads: which keys every head looks at hardest while a model writes text it reads."""
