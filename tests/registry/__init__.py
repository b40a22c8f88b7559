"""The registry: the rules of leases, and the actor that keeps them."""
