"""What people see: tables in a terminal, one page about a run, lists, plans, examinations."""
