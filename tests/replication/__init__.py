"""Several shards and replicas: their rules, their topology, and what a crash costs."""
