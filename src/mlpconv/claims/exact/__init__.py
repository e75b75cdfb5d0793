"""Claims that hold exactly: each is tried in float64, most statements on 1,000 random cases."""
