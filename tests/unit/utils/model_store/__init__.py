"""Tests of utils.model_store."""
