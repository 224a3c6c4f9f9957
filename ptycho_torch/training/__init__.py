"""Training of a network: loop, data, losses, targets, optimizer and trackers."""
