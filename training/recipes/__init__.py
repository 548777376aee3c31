"""Settings that were measured: each file is headed by its command, its cost and its result."""
