from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest
from fastapi.testclient import TestClient

from aid_edge.catalogue.keys import KeyRole, load_signer
from aid_edge.catalogue.store import Catalogue
from aid_edge.home import Home
from aid_edge.hub.api import PREFIX, create_app
from aid_edge.hub.auth import MAX_FAILURES, Guard
from aid_edge.hub.blobs import BlobService
from aid_edge.hub.director import Director
from aid_edge.hub.ingest import Ingest
from aid_edge.hub.queries import Queries
from aid_edge.hub.rows import DeviceDetail, DevicePage
from aid_edge.hub.services import Services
from aid_edge.hub.store import Store
from tests.aid_edge.hub.conftest import FLEET, ListOutbox

TOKEN = "t" * 43
ALLOWED = {"Authorization": f"Bearer {TOKEN}"}
Release = Callable[..., str]
Registered = Callable[..., str]


@pytest.fixture
def problems() -> list[str]:
    return []


@pytest.fixture
def services_at(
    store: Store, queries: Queries, home: Home, outbox: ListOutbox, problems: list[str]
) -> Callable[[str], Services]:
    """Return the services of a hub that is bound to an address."""
    catalogue = Catalogue(home)
    signer = load_signer(home.keys, KeyRole.DIRECTOR)

    def make(host: str) -> Services:
        return Services(
            fleet=FLEET,
            version="0",
            broker="mosquitto",
            queries=queries,
            director=Director(store, catalogue, FLEET, signer, outbox),
            ingest=Ingest(store, outbox, FLEET),
            blobs=BlobService(catalogue, outbox),
            guard=Guard(TOKEN, host),
            is_connected=lambda: not problems,
            problems=lambda: problems,
        )

    return make


@pytest.fixture
def client(services_at: Callable[[str], Services]) -> Iterator[TestClient]:
    app = create_app(services_at("127.0.0.1"))
    with TestClient(app, base_url="http://127.0.0.1:8800") as client:
        yield client


@pytest.fixture
def remote(services_at: Callable[[str], Services]) -> Iterator[TestClient]:
    app = create_app(services_at("192.0.2.1"))
    with TestClient(app, base_url="https://hub.example") as client:
        yield client


def _deploy(client: TestClient, headers: dict[str, str] | None = None, **body: Any) -> Any:
    return client.post(
        f"{PREFIX}/deployments", json=body, headers=ALLOWED if headers is None else headers
    )


def test_devices_are_paged_in_the_order_of_their_ids(
    client: TestClient, registered: Registered
) -> None:
    names = [f"cam-{i}" for i in range(5)]
    for name in names:
        registered(name)
    found: list[str] = []
    after: str | None = ""
    while after is not None:
        answer = client.get(f"{PREFIX}/devices", params={"after": after, "limit": 2})
        page = msgspec.json.decode(answer.content, type=DevicePage)
        assert len(page.devices) <= 2
        found += [d.device for d in page.devices]
        after = page.next
    assert found == names


def test_devices_are_filtered(client: TestClient, registered: Registered) -> None:
    registered("cam-1")
    registered("pi-1", "raspberry-pi-4")
    for query, expected in (
        ({"text": "pi-"}, ["pi-1"]),
        ({"text": "RASPBERRY"}, ["pi-1"]),
        ({"status": ["never-seen"]}, ["cam-1", "pi-1"]),
        ({"status": ["ok", "failed"]}, []),
        ({"release": "digits@1.0.0"}, []),
    ):
        answer = client.get(f"{PREFIX}/devices", params=query)
        assert [d["device"] for d in answer.json()["devices"]] == expected


def test_one_device_is_shown_whole(client: TestClient, registered: Registered) -> None:
    registered("cam-1")
    answer = client.get(f"{PREFIX}/devices/cam-1")
    detail = msgspec.json.decode(answer.content, type=DeviceDetail)
    assert detail.seed == "seed-cam-1"
    assert detail.summary.status == "never-seen"


def test_unknown_device_is_404_with_a_problem(client: TestClient) -> None:
    answer = client.get(f"{PREFIX}/devices/nobody")
    assert answer.status_code == 404
    assert answer.json()["code"] == "not-found"
    assert "nobody" in answer.json()["message"]


def test_deployment_is_made_and_listed(
    client: TestClient, registered: Registered, release: Release
) -> None:
    release()
    registered("cam-1")
    made = _deploy(client, action="deploy", name="digits", version="1.0.0", devices=["cam-1"])
    assert made.status_code == 200
    assert [a["revision"] for a in made.json()["assignments"]] == [1]
    (row,) = client.get(f"{PREFIX}/releases").json()["releases"]
    assert (row["name"], row["desired_devices"], row["active_devices"]) == ("digits", 1, 0)
    shown = client.get(f"{PREFIX}/devices/cam-1").json()
    assert shown["summary"]["desired"] == "digits@1.0.0"
    assert [u["kind"] for u in shown["updates"]] == ["deploy"]


def test_whole_fleet_can_be_told(
    client: TestClient, registered: Registered, release: Release
) -> None:
    release()
    for name in ("a", "b"):
        registered(name)
    made = _deploy(client, action="deploy", name="digits", version="1.0.0", all_devices=True)
    assert [a["device"] for a in made.json()["assignments"]] == ["a", "b"]


@pytest.mark.parametrize(
    ("body", "status", "word"),
    [
        ({"action": "rollback", "devices": ["cam-1"]}, 409, "cam-1"),
        ({"action": "rollback", "devices": ["nobody"]}, 404, "nobody"),
        (
            {"action": "deploy", "name": "no", "version": "1", "devices": ["cam-1"]},
            404,
            "no@1",
        ),
        ({"action": "deploy", "devices": ["cam-1"]}, 422, "needs name"),
        ({"action": "rollback", "devices": ["cam-1"], "name": "x"}, 422, "neither"),
        ({"action": "rollback"}, 422, "all_devices"),
        ({"action": "rollback", "devices": ["a"], "all_devices": True}, 422, "all_devices"),
        ({"action": "rollback", "devices": ["a+b"]}, 422, "devices"),
        ({"action": "rollback", "devices": "cam-1"}, 422, "devices"),
        ({"action": "rollback", "devices": ["cam-1"], "force": True}, 422, "force"),
        ({"action": "rollback", "devices": ["cam-1"], "dry_run": "yes"}, 422, "dry_run"),
        ({"action": "destroy", "devices": ["cam-1"]}, 422, "action"),
    ],
)
def test_bad_deployment_is_a_clear_problem(
    client: TestClient, registered: Registered, body: dict[str, Any], status: int, word: str
) -> None:
    registered("cam-1")
    answer = _deploy(client, **body)
    assert answer.status_code == status
    problem = answer.json()
    assert set(problem) == {"code", "message", "cause", "hint"}
    assert word in problem["message"]


def test_changing_needs_the_token_even_on_this_machine(client: TestClient) -> None:
    body = {"action": "rollback", "devices": ["cam-1"]}
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": f"Basic {TOKEN}"}):
        answer = _deploy(client, headers=headers, **body)
        assert answer.status_code == 401
        assert answer.json()["code"] == "unauthorized"
        assert answer.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize(
    "path",
    ["/devices", "/devices/x", "/releases", "/feedback", "/health", "/openapi.json"],
)
def test_reading_over_a_network_needs_the_token(remote: TestClient, path: str) -> None:
    if path != "/openapi.json":
        assert remote.get(f"{PREFIX}{path}").status_code == 401
    assert remote.get(f"{PREFIX}{path}", headers=ALLOWED).status_code in {200, 404}
    assert remote.get("/metrics").status_code == 401


def test_guessing_tokens_is_slowed_down(remote: TestClient) -> None:
    wrong = {"Authorization": "Bearer nope"}
    codes = [remote.get(f"{PREFIX}/devices", headers=wrong).status_code for _ in range(12)]
    assert codes == [401] * MAX_FAILURES + [429] * 2
    # Even the right one has to wait: otherwise a guess could be told from it.
    assert remote.get(f"{PREFIX}/devices", headers=ALLOWED).status_code == 429


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example:8800"])
def test_other_names_for_this_machine_are_refused(client: TestClient, host: str) -> None:
    answer = client.get(f"{PREFIX}/devices", headers={"Host": host})
    assert answer.status_code == 409
    assert answer.json()["code"] == "refused"


@pytest.mark.parametrize("host", ["localhost:8800", "127.0.0.1", "[::1]:8800"])
def test_own_names_of_this_machine_are_answered(client: TestClient, host: str) -> None:
    assert client.get(f"{PREFIX}/devices", headers={"Host": host}).status_code == 200


def test_too_large_body_is_refused_unread(client: TestClient) -> None:
    headers = {**ALLOWED, "Content-Length": str(2**40)}
    answer = client.post(f"{PREFIX}/deployments", headers=headers, content=b"{}")
    assert answer.status_code == 400


@pytest.mark.parametrize(
    "query",
    [{"limit": 0}, {"limit": 201}, {"limit": "many"}, {"status": "asleep"}, {"text": "x" * 101}],
)
def test_bad_query_is_a_clear_problem(client: TestClient, query: dict[str, Any]) -> None:
    answer = client.get(f"{PREFIX}/devices", params=query)
    assert answer.status_code in {400, 422}
    assert answer.json()["code"] in {"invalid-request", "usage"}


def test_unknown_path_and_method_are_problems_too(client: TestClient) -> None:
    assert client.get(f"{PREFIX}/nothing").json()["code"] == "not-found"
    assert client.delete(f"{PREFIX}/devices").json()["code"] == "method-not-allowed"


def test_health_says_what_is_wrong(client: TestClient, problems: list[str]) -> None:
    assert client.get(f"{PREFIX}/health").json()["status"] == "ok"
    problems.append("not connected to the broker")
    answer = client.get(f"{PREFIX}/health")
    assert answer.status_code == 503
    assert answer.json()["problems"] == problems


def test_metrics_are_in_the_format_of_prometheus(
    client: TestClient, registered: Registered
) -> None:
    registered("cam-1")
    answer = client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    lines = answer.text.splitlines()
    assert 'aid_hub_devices{status="never-seen"} 1' in lines
    assert "# TYPE aid_hub_messages_total counter" in lines
    assert "aid_hub_messages_total 0" in lines
    assert answer.text.endswith("\n")


def test_openapi_describes_every_answer(client: TestClient) -> None:
    document = client.get(f"{PREFIX}/openapi.json").json()
    schemas = document["components"]["schemas"]
    for path, methods in document["paths"].items():
        for operation in methods.values():
            if path == "/metrics":
                continue
            reference = operation["responses"]["200"]["content"]["application/json"]["schema"]
            assert reference["$ref"].rpartition("/")[2] in schemas
    assert "DeviceSummary" in schemas
