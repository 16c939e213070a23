"""Tollgate: a trained text model goes in, a metered and billed API comes out."""
