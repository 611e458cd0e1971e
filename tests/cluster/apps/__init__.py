"""The application of the trial: services in Go, Python and Node that call each other, and load on all of them.

`market/` is the Go program, `python/` and `node/` what the other two languages serve and ask, `manifests/` how it is
deployed. `tests/cluster/trial` runs it.
"""
