"""Tests of train.tracking."""
