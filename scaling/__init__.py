"""Which generator has which session, and how many generators there are: decisions on snapshots, in plain Python."""
