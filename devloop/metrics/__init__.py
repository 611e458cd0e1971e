"""What is known about loops: the store that keeps them, statistics and exporters."""
