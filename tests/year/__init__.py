"""A year of twelve customers on test clocks, through the real parts, compared with an independent computation."""
