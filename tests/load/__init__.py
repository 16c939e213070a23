"""A load on a running installation, with the books checked afterwards."""
