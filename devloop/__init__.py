"""devloop: run the services you work on here, the rest stays where it is, and every loop is timed."""

__version__ = "0.1.0"
