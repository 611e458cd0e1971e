"""Fakes that ship with devloop, for its own tests and for those of its users' plugins."""
