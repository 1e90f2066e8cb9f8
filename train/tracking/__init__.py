"""Keeps MLflow up to date with a home, beside the pipeline and never in its way.

What happened is told by the models, their history and the message store. A process of its
own compares that with what MLflow knows, and logs what is missing: once by `python -m ops
mlflow`, over and over beside trainer.py. MLflow that is down, slow or silent costs the
pipeline nothing; a bundle not logged yet waits in the outbox.
"""

from train.tracking.beside import Tracking, add_argument, log_once, with_tracking

__all__ = ["Tracking", "add_argument", "log_once", "with_tracking"]
