"""The scripts together, against a real broker."""
