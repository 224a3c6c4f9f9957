"""Settings of every command and engine, as frozen dataclasses. No module here imports torch."""
