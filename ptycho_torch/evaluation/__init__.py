"""Scores of a reconstruction: against the truth, and against the measured patterns."""
