"""The control socket: JSON-RPC 2.0, one message a line, on a Unix socket of mode 0600.

`server` is the engine's end, `client` everyone else's. What is said is in `devloop.protocol`.
"""
