"""Anchoring: owners learn who borrows their objects."""
