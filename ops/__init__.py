"""For whoever operates the pipeline and looks back; nothing here is needed to run it."""
