"""Tests of utils.broker."""
