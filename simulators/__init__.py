"""Stand-ins for what the product talks to, for development and tests; never part of the production image."""
