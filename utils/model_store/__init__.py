"""Bundles (a model and its preprocessor): what one is, where they are kept, which one serves."""

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
