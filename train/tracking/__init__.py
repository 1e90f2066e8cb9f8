"""Logs to MLflow from a separate process, without delaying the pipeline.

The process compares the models, their history and the message store with what MLflow has,
and logs what is missing: once with `python -m ops mlflow`, or continuously beside
trainer.py. If MLflow is down, slow or silent, the pipeline is not affected, and bundles
that are not logged yet wait in the outbox.
"""

from train.tracking.background import Tracking, add_argument, log_once, with_tracking

__all__ = ["Tracking", "add_argument", "log_once", "with_tracking"]
