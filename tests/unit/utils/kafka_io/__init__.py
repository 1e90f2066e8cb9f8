"""Tests of utils.kafka_io, against a real broker."""
