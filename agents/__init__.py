"""Floor 3: the loop. Recipe, round graph, operators, judges, roles."""
