"""The live page: what the pipeline does and how well, in a browser."""
