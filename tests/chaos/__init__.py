"""Is the ledger right whatever is killed? Real processes, real load, SIGKILL at random moments.

``test_chaos.py`` does it for a minute with every run of the tests, ``make chaos`` for a
quarter of an hour. ``rounds.py`` reads in the order in which it happens.
"""
