"""What each command does; `devloop.cli` parses, and imports the one that is asked for."""
