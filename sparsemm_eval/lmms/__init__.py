"""All that knows lmms-eval's command line and result files."""
