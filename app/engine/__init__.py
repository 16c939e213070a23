"""Token ids in, token ids out: knows no prompt text, no key, no customer and no money."""
