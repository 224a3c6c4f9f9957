"""What every room may know: configuration, error types, progress, safe file writing. Imports no torch."""
