"""The tests mirror app/: the tests of app/x/y.py are in tests/x/test_y.py."""
