"""Helpers that several tests of utils use."""

import json
from typing import Any

from utils.feature_tools import FeatureTools, message_type
from utils.messages import Decoder


def decode_data(features: FeatureTools, data: Any) -> Any:
    record = json.dumps({"request_id": "a", "data": data}).encode()
    message: Any = Decoder(message_type(features))(record)
    return message.data
