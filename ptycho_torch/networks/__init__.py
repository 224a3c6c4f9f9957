"""Networks from a diffraction pattern to the object under the probe."""
