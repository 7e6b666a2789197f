"""What a run leaves behind: the journal of its answers, its identity, its measurements, its report."""
