"""The option for MLflow, and its package."""

import pytest

from tests.harness import Pipeline
from train import tracking
from train.tracking import background
from utils.errors import UserError


def test_tracking_is_off_by_default_and_names_a_missing_package(
    home: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not tracking.with_tracking(home.settings, wanted=False).mlflow.tracking_uri
    monkeypatch.setattr(background, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"install -r requirements-mlflow\.txt"):
        tracking.with_tracking(home.settings, wanted=True)
