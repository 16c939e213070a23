"""Finds every module that answers calls or pages: importing one registers what it answers."""

import pkgutil
from importlib import import_module

from simulators import stripe


def load() -> None:
    """Import every module of the simulator but its command line, so that a new one needs no entry in a list."""
    for found in pkgutil.iter_modules(stripe.__path__):
        if found.name != "__main__":
            import_module(f"{stripe.__name__}.{found.name}")
