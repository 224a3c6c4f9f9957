"""Processes measured from outside, and a model of the runtime of training."""
