"""Tables of head scores: the record, how one is found, imported, described and compared."""
