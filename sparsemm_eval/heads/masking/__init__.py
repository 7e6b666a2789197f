"""The masking experiment: what a model loses without its visual heads."""
