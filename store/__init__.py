"""Floor 1: facts. Schema, views, curation, analysis."""
