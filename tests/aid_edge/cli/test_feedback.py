from __future__ import annotations

import json
from pathlib import Path

import pytest

from aid_edge.cli.main import run
from aid_edge.home import Home
from aid_edge.hub.serve import RunningHub
from device_agent.contract.messages import Feedback, ReleaseRef
from device_agent.contract.topics import Channel
from tests.support.running_hubs import obedient_device
from tests.support.simulated_device import BOOT_ID

Capture = pytest.CaptureFixture[str]


def test_what_people_said_is_listed(
    hub_home: Home, hub: RunningHub, tmp_path: Path, capsys: Capture
) -> None:
    with obedient_device(hub_home, hub, "one", tmp_path / "ids") as device:
        for seq, verdict in enumerate(("right", "wrong"), start=1):
            said = Feedback(
                boot_id=BOOT_ID,
                seq=seq,
                at_unix_s=1_800_000_000.0,
                inference_id=f"i{seq}",
                release=ReleaseRef("digits", "1.0.0", "sha256:" + "0" * 64),
                verdict=verdict,  # type: ignore[arg-type]
                predicted="three",
                confidence=0.5,
                label="eight",
            )
            device.send(said, Channel.FEEDBACK)
        while device.ack().seq < 2:
            pass
    assert run(["feedback", "list"]) == 0
    text = capsys.readouterr().out
    assert text.index("wrong") < text.index("right")
    assert run(["feedback", "list", "--verdict", "wrong", "--device", "one", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["schema"] == "aid-edge/feedback/v1"
    assert [(f["verdict"], f["label"]) for f in found["feedback"]] == [("wrong", "eight")]
    assert run(["feedback", "list", "--device", "two"]) == 0
    assert capsys.readouterr().out == "No feedback.\n"
