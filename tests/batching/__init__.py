"""Many at once, without waiting: group commit, bulk calls, unacknowledged pins, and the awaitable face."""
