"""What the tests share, and no tests: helpers for waiting, processes, actors, registries of several shards, and so on."""
