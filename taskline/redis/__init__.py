"""What the Redis transport and the Redis backend share: connections, nodes, scripts, packing."""
