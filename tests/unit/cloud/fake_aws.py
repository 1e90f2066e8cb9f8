"""AWS on this machine: moto's server, and what it lacks of SageMaker's endpoints in front of it.

moto knows the registry, models, configurations, tags and S3; an endpoint of moto's serves at once.
Added here, as AWS documents it:

- `UpdateEndpoint`, `DeleteModelPackage` and `DeleteModelPackageGroup`;
- shadow variants, and the rule that they come with one production variant;
- names of models, configurations and endpoints that are taken, and a configuration in use;
- the states Creating, Updating and Deleting, for as many looks as a test wants, and how they end.
"""

import io
import json
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from moto.moto_server.werkzeug_app import (
    DomainDispatcherApplication,
    MotoRequestHandler,
    create_backend_app,
)
from moto.s3.models import s3_backends
from moto.sagemaker.models import FakeEndpoint, sagemaker_backends
from werkzeug.serving import make_server

ACCOUNT, REGION = "123456789012", "eu-central-1"
BUCKET = "models-of-a-test"
#: Settings of [sagemaker].
SECTION = {
    "endpoint": "adult",
    "role": f"arn:aws:iam::{ACCOUNT}:role/sagemaker",
    "image": f"{ACCOUNT}.dkr.ecr.{REGION}.amazonaws.com/pipeline:1",
    "bucket": BUCKET,
    "prefix": "of/tests",
}

Environ = dict[str, Any]
Request = dict[str, Any]
Answer = dict[str, Any] | None

#: S3's operations by the HTTP method.
S3 = {
    "HEAD": "HeadObject",
    "PUT": "PutObject",
    "DELETE": "DeleteObject",
    "GET": "ListObjectsV2",
}


def with_sagemaker(text: str, **section: str) -> str:
    """A pipeline.toml with these settings of [sagemaker]."""
    for name, value in section.items():
        text, count = re.subn(f'(?m)^{name} = ".*?"', f'{name} = "{value}"', text)
        assert count == 1, name
    return text


class Refusal(Exception):
    """AWS refuses a call: its code and text."""

    def __init__(self, text: str, code: str = "ValidationException") -> None:
        super().__init__(text)
        self.code = code


@dataclass
class Script:
    """What a test wants to happen.

    Attributes:
        looks: How many looks at an endpoint show a passing state after a change.
        failure: Why changes fail; empty if they succeed.
        ends_as: The state after a failed change.
        refusals: Errors of the next calls, by operation.
        unanswered: Calls that get no answer, by operation: how many.
        on_look: Called at each look.
    """

    looks: int = 0
    failure: str = ""
    ends_as: str = "InService"
    refusals: dict[str, list[Refusal]] = field(default_factory=dict)
    unanswered: Counter[str] = field(default_factory=Counter)
    on_look: Callable[[], object] = lambda: None


class _Silent(MotoRequestHandler):  # type: ignore[misc]
    protocol_version = "HTTP/1.1"  # connections are kept

    def log(self, type: str, message: str, *args: object) -> None:
        pass


class FakeAws:
    """The server.

    Attributes:
        address: Its URL, for AWS_ENDPOINT_URL.
        calls: The operations that were called, in their order.
        script: What happens.
    """

    def __init__(self) -> None:
        self._moto = DomainDispatcherApplication(create_backend_app)
        self._lock = threading.Lock()
        self._server = make_server("127.0.0.1", 0, self, threaded=True, request_handler=_Silent)
        self.address = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.reset()

    def reset(self) -> None:
        """Begin with an empty account that has one bucket."""
        self.calls: list[str] = []
        self.script = Script()
        self._shadows: dict[str, list[Request]] = {}
        self._pending: dict[str, tuple[int, Callable[[], None]]] = {}
        self.sagemaker.reset()
        s3_backends[ACCOUNT]["aws"].reset()
        s3_backends[ACCOUNT]["aws"].create_bucket(BUCKET, REGION)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def environment(self) -> dict[str, str]:
        """The variables by which boto3 finds the server."""
        return {
            "AWS_ENDPOINT_URL": self.address,
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": REGION,
            "AWS_CONFIG_FILE": "/dev/null",
            "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    @property
    def sagemaker(self) -> Any:
        """Moto's state."""
        return sagemaker_backends[ACCOUNT][REGION]

    def objects(self) -> dict[str, bytes]:
        """The bucket's content."""
        keys = s3_backends[ACCOUNT]["aws"].buckets[BUCKET].keys
        return {name: key.value for name, key in keys.items()}

    def everything(self) -> dict[str, list[str]]:
        """The names of all that is there."""
        backend = self.sagemaker
        return {
            "endpoints": sorted(backend.endpoints),
            "configs": sorted(backend.endpoint_configs),
            "models": sorted(backend._models),
            "groups": sorted(backend.model_package_groups),
            "versions": sorted(backend.model_packages),
            "objects": sorted(self.objects()),
        }

    def finish_change(self, name: str, looks: int = 0) -> None:
        """Let the change that goes on end after so many more looks, and later ones at once."""
        self.script.looks = 0
        self._pending[name] = (looks, self._pending[name][1])

    def serving(self, name: str) -> dict[str, str]:
        """The models of an endpoint by variant."""
        config = self.sagemaker.endpoints[name].endpoint_config_name
        variants = [
            *self.sagemaker.endpoint_configs[config].production_variants,
            *self._shadows.get(config, ()),
        ]
        return {one["VariantName"]: one["ModelName"] for one in variants}

    def __call__(self, environ: Environ, start_response: Any) -> Iterable[bytes]:
        operation = environ.get("HTTP_X_AMZ_TARGET", "").partition(".")[2]
        body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        environ["wsgi.input"] = io.BytesIO(body)
        with self._lock:
            name = operation or S3[environ["REQUEST_METHOD"]]
            self.calls.append(name)
            try:
                if self.script.unanswered[name]:
                    self.script.unanswered[name] -= 1
                    raise Refusal("try again", "InternalFailure")
                if waiting := self.script.refusals.get(name):
                    raise waiting.pop(0)
                request = json.loads(body) if operation else {}
                answer = getattr(self, f"_{operation}", _passed_on)(request)
            except Refusal as refusal:
                text = {"__type": refusal.code, "message": str(refusal)}
                return _reply(start_response, "400 Bad Request", text)
            if answer is not None:
                return _reply(start_response, "200 OK", answer)
            return list(self._moto(environ, start_response))

    # What moto lacks, by operation; None passes the call on to moto.

    def _CreateModel(self, request: Request) -> Answer:
        if request["ModelName"] in self.sagemaker._models:
            raise Refusal("Cannot create already existing model")
        return None

    def _CreateEndpointConfig(self, request: Request) -> Answer:
        name, shadows = request["EndpointConfigName"], request.get("ShadowProductionVariants", [])
        if name in self.sagemaker.endpoint_configs:
            raise Refusal("Cannot create already existing endpoint configuration")
        if shadows and (len(shadows), len(request["ProductionVariants"])) != (1, 1):
            raise Refusal("Only one variant for ProductionVariants and one shadow")
        for shadow in shadows:
            if shadow["ModelName"] not in self.sagemaker._models:
                raise Refusal(f"Could not find model {shadow['ModelName']}")
        self._shadows[name] = shadows
        return None

    def _DescribeEndpointConfig(self, request: Request) -> Answer:
        name = request["EndpointConfigName"]
        if not self._shadows.get(name) or name not in self.sagemaker.endpoint_configs:
            return None
        found = dict(self.sagemaker.describe_endpoint_config(name))
        shown = ("EndpointConfigName", "EndpointConfigArn", "ProductionVariants")
        return {key: found[key] for key in shown} | {
            "ShadowProductionVariants": self._shadows[name],
            "CreationTime": 0,
        }

    def _DeleteEndpointConfig(self, request: Request) -> Answer:
        name = request["EndpointConfigName"]
        for endpoint in self.sagemaker.endpoints.values():
            if endpoint.endpoint_config_name == name:
                raise Refusal(f"{name} is in use by {endpoint.endpoint_name}")
        return None

    def _CreateEndpoint(self, request: Request) -> Answer:
        name, config = request["EndpointName"], request["EndpointConfigName"]
        if name in self.sagemaker.endpoints:
            raise Refusal("Cannot create already existing endpoint")
        if config not in self.sagemaker.endpoint_configs:
            raise Refusal("Could not find endpoint configuration")
        made = self.sagemaker.create_endpoint(name, config, request.get("Tags"))
        failure = self.script.failure
        self._change(made, "Creating", lambda: _end(made, "Failed" if failure else "", failure))
        return {"EndpointArn": made.arn}

    def _UpdateEndpoint(self, request: Request) -> Answer:
        endpoint = self._endpoint(request)
        wanted = self.sagemaker.endpoint_configs.get(request["EndpointConfigName"])
        if wanted is None:
            raise Refusal("Could not find endpoint configuration")
        if endpoint.endpoint_config_name == wanted.endpoint_config_name:
            raise Refusal("Cannot update endpoint to use the same configuration")
        failure, state = self.script.failure, self.script.ends_as

        def end() -> None:
            if not failure:
                endpoint.endpoint_config_name = wanted.endpoint_config_name
                endpoint.production_variants = endpoint._process_production_variants(
                    wanted.production_variants
                )
            _end(endpoint, state if failure else "", failure)

        self._change(endpoint, "Updating", end)
        return {"EndpointArn": endpoint.arn}

    def _UpdateEndpointWeightsAndCapacities(self, request: Request) -> Answer:
        endpoint = self._endpoint(request)
        if self.script.failure:
            failure = self.script.failure
            self._change(endpoint, "RollingBack", lambda: _end(endpoint, "", failure))
            return {"EndpointArn": endpoint.arn}
        return None

    def _DescribeEndpoint(self, request: Request) -> Answer:
        name = request["EndpointName"]
        self.script.on_look()
        if name in self._pending:
            looks, end = self._pending[name]
            self._pending[name] = (looks - 1, end)
            if looks <= 0:
                del self._pending[name]
                end()
        return None

    def _DeleteEndpoint(self, request: Request) -> Answer:
        endpoint = self._endpoint(request, failed=True)
        endpoints = self.sagemaker.endpoints
        self._change(endpoint, "Deleting", lambda: endpoints.pop(endpoint.endpoint_name))
        return {}

    def _DeleteModelPackage(self, request: Request) -> Answer:
        if self.sagemaker.model_packages.pop(request["ModelPackageName"], None) is None:
            raise Refusal("Model Package does not exist")
        return {}

    def _DeleteModelPackageGroup(self, request: Request) -> Answer:
        name, backend = request["ModelPackageGroupName"], self.sagemaker
        if any(one.model_package_group_name == name for one in backend.model_packages.values()):
            raise Refusal("Model Package Group is not empty", "ConflictException")
        if backend.model_package_groups.pop(name, None) is None:
            raise Refusal(f"ModelPackageGroup {name} does not exist.")
        return {}

    def _endpoint(self, request: Request, *, failed: bool = False) -> FakeEndpoint:
        endpoint = self.sagemaker.endpoints.get(request["EndpointName"])
        if endpoint is None:
            raise Refusal(f'Could not find endpoint "{request["EndpointName"]}".')
        allowed = ("InService", "Failed") if failed else ("InService",)
        if endpoint.endpoint_status not in allowed:
            raise Refusal("Cannot update in-progress endpoint")
        return endpoint

    def _change(self, endpoint: FakeEndpoint, state: str, end: Callable[[], object]) -> None:
        endpoint.endpoint_status = state
        self._pending[endpoint.endpoint_name] = (self.script.looks, lambda: void(end()))


def void(value: object) -> None:
    """Of what nobody wants the value."""


def _end(endpoint: FakeEndpoint, state: str, failure: str) -> None:
    endpoint.endpoint_status = state or "InService"
    endpoint.failure_reason = failure or None


def _passed_on(request: Request) -> Answer:
    return None


def _reply(start_response: Any, status: str, content: dict[str, Any]) -> list[bytes]:
    body = json.dumps(content).encode()
    start_response(
        status,
        [("Content-Type", "application/x-amz-json-1.1"), ("Content-Length", str(len(body)))],
    )
    return [body]
