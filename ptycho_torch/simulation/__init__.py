"""Simulated scans: objects, probes and trajectories by name, put together by the package's own forward model."""
