"""Simulated scans: objects, probes and trajectories by name, and the forward model."""
