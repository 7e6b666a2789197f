"""Head-score tables that come with the package: one JSON file per model."""
