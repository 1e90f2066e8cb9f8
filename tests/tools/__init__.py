"""Tools to run by hand: torture, soak, fuzz, and the audit of installed packages."""
