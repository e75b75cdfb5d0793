"""Claims that only experiments decide: paired runs on small data sets, with hypotheses fixed before the runs."""
