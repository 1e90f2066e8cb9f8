"""Trains and evaluates models; does not depend on Kafka."""
