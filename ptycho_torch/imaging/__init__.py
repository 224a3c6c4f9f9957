"""Judging and showing results: stitching, alignment, metrics, ring correlation, pictures and the report."""
