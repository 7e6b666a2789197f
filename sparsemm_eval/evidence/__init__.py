"""The paper's experiments on a shipped reader, as one document with figures."""
