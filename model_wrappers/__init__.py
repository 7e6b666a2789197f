"""lmms-eval model classes: one generate loop, one record per model family, one name per method."""
