"""Helpers that several tests of utils use."""

import json
from typing import Any

import pandas as pd

from utils.feature_tools import FeatureTools
from utils.message_decoder import MessageDecoder
from utils.preprocess_data import fit_features
from utils.settings import ColumnType, Data


def decode_data(features: FeatureTools, data: Any) -> Any:
    record = json.dumps({"request_id": "a", "data": data}).encode()
    message: Any = MessageDecoder(features)(record)
    return message.data


def types_of(frame: pd.DataFrame, target: str) -> dict[str, ColumnType]:
    """Types by the dtypes of a frame: numbers and categories."""
    return {
        name: "number" if pd.api.types.is_numeric_dtype(frame[name]) else "category"
        for name in frame.columns
        if name != target
    }


def fit(frame: pd.DataFrame, data: Data) -> FeatureTools:
    """Fit the preprocessor to a frame whose dtypes are the types."""
    return fit_features(frame, data, types_of(frame, data.target))
