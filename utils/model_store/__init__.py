"""Bundles (a model and its preprocessor): their format, their store, and the serving one."""

from utils.model_store.bundle import (
    FEATURES,
    MANIFEST,
    MODEL,
    Bundle,
    BundleError,
    Draft,
    ModelStoreError,
    predicted_codes,
)
from utils.model_store.store import ModelStore, serving_id

__all__ = [
    "FEATURES",
    "MANIFEST",
    "MODEL",
    "Bundle",
    "BundleError",
    "Draft",
    "ModelStore",
    "ModelStoreError",
    "predicted_codes",
    "serving_id",
]
