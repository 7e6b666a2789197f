"""The page tasks: YAML for lmms-eval, their metrics, and the held-out pages."""
