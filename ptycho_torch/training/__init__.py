"""Training of a network on scans: the loop, the bundle that it leaves, and trackers."""
