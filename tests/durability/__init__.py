"""Durable leases: copies that the registry owns."""
