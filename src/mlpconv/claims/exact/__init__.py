"""Claims that hold exactly: each is tried on at least 1,000 random cases in float64."""
