"""Command lines: parser, runner, progress and logging."""
