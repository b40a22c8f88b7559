"""Measurements of safe_refs against what it is built on and what people use instead."""
