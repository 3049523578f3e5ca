"""Floor 2: rows and weights in, a new revision out. Knows no store, no graph and no judge."""
