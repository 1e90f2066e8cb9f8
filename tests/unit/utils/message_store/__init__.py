"""Tests of utils.message_store, on SQLite and PostgreSQL."""
