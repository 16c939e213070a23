"""Products and attention for processors, compiled in memory when a process starts, as XLA custom calls."""
