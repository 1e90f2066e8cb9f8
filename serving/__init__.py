"""The model over HTTP: `python -m serving`."""
