"""Models that act: load, sample, score, choose, swap weights, prove which weights they hold."""
