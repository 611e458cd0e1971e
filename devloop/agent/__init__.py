"""What runs in the agent image: the cluster's end of the link. It stands alone, without the engine."""
