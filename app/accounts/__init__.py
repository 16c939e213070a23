"""People: who they are, how they log in, which organisations they belong to and what they may do there."""
