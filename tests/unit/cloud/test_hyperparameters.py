"""The hyperparameters of a training job: text that becomes settings, or one clear line."""

import json
from pathlib import Path

import pytest

from cloud.hyperparameters import HYPERPARAMETERS, Plan, help_text, plan_of
from utils import settings
from utils.errors import UserError
from utils.settings import Data

PATH = Path("hyperparameters.json")


def plan(**sent: object) -> Plan:
    return plan_of(sent, settings.load({}), PATH)


def test_text_becomes_settings() -> None:
    made = plan(
        target="bought",
        positive="yes",
        drop="id, name",
        categorical='["zip"]',
        cross="zip*region,region*shop",
        types="day=date,n=number",
        max_categories="50",
        missing="?,NA",
        comment="#",
        target_suffix=".",
        separator=r"\t",
        decimal=",",
        encoding="UTF8",
        columns="id,name,zip,region,shop,day,n,bought",
        seed="7",
        folds="4",
        evals="3",
        hyper="hyperopt",
    )
    assert made.data == Data(
        train="train.csv",
        target="bought",
        positive="yes",
        drop=("id", "name"),
        categorical=("zip",),
        cross=(("zip", "region"), ("region", "shop")),
        types=(("day", "date"), ("n", "number")),
        max_categories=50,
        missing=("?", "NA"),
        comment="#",
        target_suffix=".",
        separator="\t",
        decimal=",",
        encoding="utf-8",
        columns=("id", "name", "zip", "region", "shop", "day", "n", "bought"),
    )
    assert (made.training.seed, made.training.folds, made.evals) == (7, 4, 3)
    assert (made.hyper, made.by_itself) == ("hyperopt", True)


def test_text_may_be_json() -> None:
    """SageMaker's Python SDK encodes values so, and by hand there may be numbers and lists."""
    made = plan(
        target='"bought"',
        drop='"a,b"',
        cross='[["c", "d"]]',
        types='{"day": "date"}',
        separator='";"',
        missing='["a,b", ""]',
        seed='"7"',
        folds=4,
        evals=3,
        columns=["a", "b", "c", "d", "day", "bought"],
    )
    assert (made.data.target, made.data.separator, made.data.drop) == ("bought", ";", ("a", "b"))
    assert (made.data.cross, made.data.types) == ((("c", "d"),), (("day", "date"),))
    assert made.data.missing == ("a,b", "")
    assert (made.training.seed, made.training.folds, made.evals) == (7, 4, 3)
    assert made.data.columns[-1] == "bought"


def test_texts_that_look_like_numbers_or_json_stay_texts() -> None:
    made = plan(target="1", positive="007", comment='"', missing="0,[x]")
    assert (made.data.target, made.data.positive, made.data.comment) == ("1", "007", '"')
    assert made.data.missing == ("0", "[x]")


def test_target_puts_pipeline_toml_aside() -> None:
    assert plan(target="bought").data == Data(train="train.csv", target="bought")


def test_without_target_single_settings_of_pipeline_toml_change() -> None:
    configured = settings.load({}).data
    made = plan(drop="age", seed="3")
    expected = {"drop": ("age",), "train": "train.csv", "test": "", "files": ()}
    assert made.data == configured.model_copy(update=expected)
    assert (made.training.seed, made.training.folds, made.by_itself) == (3, 3, False)
    assert (made.evals, made.hyper) == (10, "hyperopt")


def test_hyperparameters_of_sagemaker_are_ignored() -> None:
    made = plan(
        target="y", sagemaker_program="train.py", _tuning_objective_metric="validation:log_loss"
    )
    assert made.ignored == ("sagemaker_program", "_tuning_objective_metric")


@pytest.mark.parametrize(
    ("sent", "said"),
    [
        ({"tarket": "y"}, "hyperparameter 'tarket' is unknown; known are target, positive, drop"),
        ({"retrain_every": "25"}, "hyperparameter 'retrain_every' is unknown"),
        ({"files": "[]"}, "hyperparameter 'files' is unknown"),
        ({"target": ""}, "hyperparameter target: names no column"),
        ({"target": '""'}, "hyperparameter target: names no column"),
        ({"folds": "1"}, "hyperparameter folds: Input should be greater than or equal to 2, not"),
        ({"seed": "x"}, "hyperparameter seed: Input should be a valid integer"),
        ({"max_categories": "-1"}, "hyperparameter max_categories: "),
        ({"separator": "::"}, "hyperparameter separator: "),
        ({"decimal": ";"}, "hyperparameter decimal: "),
        ({"encoding": "klingon"}, "hyperparameter encoding: is no encoding that Python knows"),
        ({"drop": '["a"'}, "hyperparameter drop: wants names separated by commas, or JSON"),
        ({"drop": "[1]"}, "hyperparameter drop: Input should be a valid string, not 1"),
        ({"cross": "a,b"}, "hyperparameter cross: wants a*b,c*d, or JSON"),
        ({"cross": "a*b*c"}, "hyperparameter cross: wants a*b,c*d, or JSON"),
        ({"cross": '[["a"'}, "hyperparameter cross: wants a*b,c*d, or JSON"),
        ({"types": "day"}, "hyperparameter types: wants name=type,name=type, or JSON"),
        (
            {"types": "day=time"},
            "hyperparameter types: Input should be 'number', 'category' or 'date', not 'time'",
        ),
        ({"target": "y", "drop": "y"}, "hyperparameters.json: 'y' is the target"),
        ({"decimal": ",", "separator": ","}, "decimal and separator are both ','"),
        ({"evals": "0"}, "hyperparameter evals: wants a number from 1 to 999999, not '0'"),
        ({"evals": "3.5"}, "hyperparameter evals: wants a number"),
        ({"evals": "9" * 5000}, "hyperparameter evals: wants a number"),
        ({"hyper": "luck"}, "no optimiser 'luck'; choose one of hyperopt,"),
    ],
    ids=lambda value: json.dumps(value)[:40] if isinstance(value, dict) else "",
)
def test_what_is_wrong_is_one_line(sent: dict[str, object], said: str) -> None:
    with pytest.raises(UserError) as caught:
        plan(**{"target": "bought", **sent})
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_every_setting_of_a_data_set_is_a_hyperparameter() -> None:
    of_data = {one.name for one in HYPERPARAMETERS if one.section == "data"}
    assert of_data == set(Data.model_fields) - {"train", "test", "files"}
    assert [line.split()[0] for line in help_text().splitlines()[1:]] == [
        one.name for one in HYPERPARAMETERS
    ]
