"""Kubernetes as a remote: the API as kubectl reaches it, port-forwards, the agent, and rights."""
