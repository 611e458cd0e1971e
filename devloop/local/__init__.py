"""Services on this machine: their processes, files, probes, ports and logs."""
