"""Commands to operate and inspect the pipeline; the pipeline runs without them."""
