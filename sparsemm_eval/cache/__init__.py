"""Where entries live: dense and ragged stores, the cache layers over them, and their statistics."""
