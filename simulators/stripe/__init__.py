"""A small stateful Stripe over HTTP.

It is checked against Stripe's published types (those of the installed client library) and behaves as Stripe documents;
it was never compared with the real service. It holds one account in memory, in one process, and knows the objects that
billing by subscription and meter needs. What it does not know it refuses with the error Stripe would send.
"""
