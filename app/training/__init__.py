"""From data to a published model: clean, split, tokenize, train, evaluate, publish. Never imported by a service."""
