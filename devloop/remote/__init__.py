"""The other end: links to a Kubernetes cluster, to a host with an SSH server, or to the embedded sandbox."""
