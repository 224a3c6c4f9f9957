"""The process group of a run, and the device of each process."""
