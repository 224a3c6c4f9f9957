"""Prediction by a trained network, and stitching of its patches."""
