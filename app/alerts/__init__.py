"""Telling customers how much of their limits is used up, by mail and by signed webhooks."""
