"""lmms-eval tasks that come with the package."""
