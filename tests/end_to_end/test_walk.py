"""The whole way of a release, with a real broker, real bundles and real agents."""

from __future__ import annotations

import json
from typing import Any

import httpx
import numpy as np
import pytest

from examples.local_fleet import FleetError, LocalFleet, infer
from tests.end_to_end.conftest import active_manifest, client_of, device_row

pytestmark = pytest.mark.slow

Samples = tuple[str, np.ndarray[Any, Any], np.ndarray[Any, Any]]


def test_release_is_deployed_served_judged_replaced_and_rolled_back(
    fleet: LocalFleet, samples: Samples
) -> None:
    name, inputs, labels = samples
    fleet.aid_edge("deploy", "digits@1.0.0", "--to", "one", "--to", "two", "--wait", "90")
    assert active_manifest(fleet.devices["one"])["runtime"]["name"] == "onnx_runtime"

    right = 0
    for device in fleet.devices.values():
        with client_of(device) as client:
            answers = [infer(client, "digits", {name: sample}) for sample in inputs[:40]]
        right += sum(
            int(next(iter(a.outputs.values())).argmax()) == label
            for a, label in zip(answers, labels, strict=False)
        )
    assert right >= 0.9 * 80

    with client_of(fleet.devices["one"]) as client:
        judged = answers_id = infer(client, "digits", {name: inputs[0]})
        said = {"inference_id": judged.inference_id, "verdict": "wrong", "label": "smudge"}
        client.post("/v1/feedback", json=said).raise_for_status()

    fleet.wait_for(
        "telemetry of both devices",
        lambda: (
            device_row(fleet, "one")["requests"] == 41
            and device_row(fleet, "two")["requests"] == 40
        ),
        60,
    )
    (feedback,) = fleet.ask("feedback", "list")["feedback"]
    assert feedback["inference_id"] == answers_id.inference_id
    assert (feedback["verdict"], feedback["label"]) == ("wrong", "smudge")
    assert feedback["release"] == "digits@1.0.0"

    fleet.aid_edge("deploy", "digits@1.1.0", "--to", "one", "--wait", "90")
    assert active_manifest(fleet.devices["one"])["runtime"]["name"] == "litert"
    with client_of(fleet.devices["one"]) as client:
        answer = infer(client, "digits", {name: inputs[0]})
        assert int(next(iter(answer.outputs.values())).argmax()) == labels[0]

    fleet.aid_edge("rollback", "--to", "one", "--wait", "90")
    fleet.wait_for(
        "the older release", lambda: device_row(fleet, "one")["release"] == "digits@1.0.0", 30
    )
    assert active_manifest(fleet.devices["one"])["version"] == "1.0.0"


def test_status_and_verify_say_what_stands(fleet: LocalFleet) -> None:
    import subprocess

    device = fleet.devices["one"]
    for verb in ("status", "verify"):
        done = subprocess.run(
            [str(device.command), verb, "--home", str(device.home), "--json"],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        assert "schema" in json.loads(done.stdout)


def test_deploying_what_is_not_there_is_refused_by_name(fleet: LocalFleet) -> None:
    with pytest.raises(FleetError, match="digits@9"):
        fleet.aid_edge("deploy", "digits@9.9.9", "--to", "one")
    with pytest.raises(FleetError, match="nobody"):
        fleet.aid_edge("deploy", "digits@1.0.0", "--to", "nobody")


def test_bad_inference_requests_are_refused_and_the_model_serves_on(
    fleet: LocalFleet, samples: Samples
) -> None:
    name, inputs, _ = samples
    with client_of(fleet.devices["two"]) as client:
        for bad in (
            {"wrong-name": inputs[0]},
            {name: inputs[0].reshape(1, 8, 8, 1)[:, :4]},
        ):
            with pytest.raises(httpx.HTTPStatusError) as refused:
                infer(client, "digits", bad)
            assert refused.value.response.status_code == 400
            assert refused.value.response.json()["error"]
        with pytest.raises(httpx.HTTPStatusError) as late:
            infer(client, "digits", {name: inputs[0]}, parameters={"deadline_ms": -1})
        assert late.value.response.status_code == 400
        assert infer(client, "digits", {name: inputs[0]}).outputs
