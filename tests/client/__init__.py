"""Ray Client (`ray://`): what works there, and how its leases end."""
