from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from device_agent.contract.chunk import decode_chunk
from device_agent.contract.messages import BlobRefused, MetadataReply, decode
from device_agent.contract.topics import Channel
from device_agent.errors import TransportError
from device_agent.transfer.link import Request, TransferLink
from tests.support.agent_doubles import HubDouble


@dataclass
class Rig:
    """A transfer link whose requests a hub double answers at once."""

    hub: HubDouble
    link: TransferLink
    is_connected: bool = True


@pytest.fixture
def rig() -> Iterator[Rig]:
    hub = HubDouble()

    def send(request: Request) -> None:
        if not made.is_connected:
            raise TransportError("not connected")
        for channel, payload in hub.answers(request):
            if channel is Channel.BLOB_CHUNK:
                made.link.on_chunk(decode_chunk(payload))
            else:
                reply = decode(payload)
                assert isinstance(reply, BlobRefused | MetadataReply)
                made.link.on_reply(reply)

    made = Rig(hub, TransferLink(send))
    yield made
    made.link.close()
