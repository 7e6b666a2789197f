"""The plugin's models, as lmms-eval wants them listed."""

AVAILABLE_MODELS = {"oracle": "Oracle"}
