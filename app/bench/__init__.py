"""Measures: a running server, the engine alone, others on the same weights. Nothing in the product depends on it."""
