"""A customer's own data: what is kept of requests, everything in one file, and everything deleted."""
