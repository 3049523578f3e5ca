"""The exam that ships, and the programs that made it."""
