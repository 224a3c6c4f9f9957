"""Ways to a reconstruction: each is `run(scan, observer) -> Reconstruction`."""
