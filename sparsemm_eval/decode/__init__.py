"""How tokens are generated from a compressed cache: by ``generate``, or by an own loop of captured steps."""
