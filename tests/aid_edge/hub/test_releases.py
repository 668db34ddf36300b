from __future__ import annotations

import json
from collections.abc import Callable

from aid_edge.catalogue.store import Catalogue
from aid_edge.home import Home
from aid_edge.hub.queries import Queries
from aid_edge.hub.releases import CatalogueReleases
from aid_edge.hub.store import Store
from aid_edge.hub.web.pages import FleetView, Pages


def _alter(home: Home) -> None:
    (path,) = home.path.rglob("timestamp.json")
    data = json.loads(path.read_bytes())
    data["signatures"][0]["sig"] = "00" + data["signatures"][0]["sig"][2:]
    path.write_text(json.dumps(data))


def test_deadline_and_labels_are_those_of_the_release(
    home: Home, release: Callable[..., str]
) -> None:
    digest = release()
    (published,) = Catalogue(home).releases()
    releases = CatalogueReleases(Catalogue(home))
    assert releases.deadline_s(digest) == published.manifest.limits.deadline_s
    assert len(releases.labels(digest)) > 0
    assert releases.deadline_s("sha256:" + "0" * 64) is None
    assert releases.deadline_s("") is None
    _alter(home)
    # It is known by its digest, so nothing of it can have changed.
    assert releases.deadline_s(digest) == published.manifest.limits.deadline_s


def test_devices_are_shown_beside_an_altered_catalogue(
    home: Home, release: Callable[..., str], store: Store
) -> None:
    release()
    with store.transaction() as transaction:
        transaction.register("cam-1", "generic-x86_64", "seed", 1.0)
    _alter(home)
    queries = Queries(store.path, CatalogueReleases(Catalogue(home)))
    try:
        pages = Pages(queries, "fleet-a", "0")
        shown = pages.fleet(FleetView())
        assert "The catalogue cannot be used" in shown
        assert "cam-1" in shown
        assert pages.device("cam-1") is not None
    finally:
        queries.close()
