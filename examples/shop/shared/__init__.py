"""What the services of the shop have in common: a Redis client, an HTTP server that stops in order, a log."""
