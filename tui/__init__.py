"""The terminal user interface: a client of the control socket, and the only part that imports Textual."""
