"""How bytes go between a generator and a restore store: one-sided, through slots that the generator owns."""
