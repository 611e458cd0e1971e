"""A small cluster inside of devloop: it runs what Kubernetes manifests say, on a machine that has no cluster."""
