"""`mlflow models serve` with a bundle's model, one worker.

    .venv-http/bin/python -m benchmarks.rivals.mlflow_server MODEL.txt FOLDER PORT KIND

Saves the model into FOLDER and becomes the server. KIND is what the model's signature says it
takes: `table` (a DataFrame, which requests send as `dataframe_split`) or `tensor` (an array, which
they send as `inputs`, and which is faster).
"""

import os
import sys
from pathlib import Path

import lightgbm as lgb
import mlflow
import numpy as np
import pandas as pd
from mlflow.models import infer_signature


def save(model: str, folder: str, kind: str) -> None:
    """Save a LightGBM model in MLflow's format, with a signature."""
    booster = lgb.Booster(model_file=model)
    array = np.zeros((1, booster.num_feature()))
    rows = pd.DataFrame(array, columns=booster.feature_name()) if kind == "table" else array
    signature = infer_signature(rows, booster.predict(array))
    # Without the requirements MLflow would find them out in another process.
    mlflow.lightgbm.save_model(
        booster, folder, signature=signature, pip_requirements=[f"lightgbm=={lgb.__version__}"]
    )


def main(model: str, folder: str, port: str, kind: str) -> None:
    """Save the model and serve it until a signal."""
    save(model, folder, kind)
    command = str(Path(sys.executable).with_name("mlflow"))
    where = ["--model-uri", folder, "--host", "127.0.0.1", "--port", port]
    how = ["--env-manager", "local", "--workers", "1"]
    # The server is started as `uvicorn`, which has to be that of this environment.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    arguments = [command, "models", "serve", *where, *how]
    os.execve(command, arguments, {**os.environ, "PATH": path})


if __name__ == "__main__":
    main(*sys.argv[1:])
