"""Tests of utils.telemetry."""
