"""Prices, and what usage costs at them."""
