"""What tests run in worker processes of the LiteRT converters."""

from __future__ import annotations

from pathlib import Path

from aid_edge.model import SourceModel
from aid_edge.recipe import Quantize
from aid_edge.samples import Samples
from device_agent.contract.profile import HardwareProfile


def quantize(
    floating: Path,
    how: Quantize,
    data: tuple[SourceModel, Samples],
    to: Path,
    profile: HardwareProfile,
) -> int:
    """Quantize a float file, and return how many samples were given."""
    from converters import litert_quantize

    litert_quantize.quantize(floating, how, (*data, {}), profile, to)
    return data[1].count


def externalize(path: Path) -> None:
    """Put the weights of a model behind its flatbuffer, as ai-edge-quantizer does with large ones.

    LiteRT reads both; TFLite Micro ignores ``Buffer.offset`` and computes garbage.
    """
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    def packed() -> bytearray:
        builder = flatbuffers.Builder(2**16)
        builder.Finish(found.Pack(builder), file_identifier=b"TFL3")
        return bytearray(builder.Output())

    found = schema.ModelT.InitFromPackedBuf(path.read_bytes(), 0)
    weights = [
        (buffer, bytes(buffer.data))
        for buffer in found.buffers
        if buffer.data is not None and len(buffer.data) >= 64 and not buffer.offset
    ]
    for buffer, _ in weights:
        buffer.data, buffer.offset, buffer.size = None, 1, 1
    end = -(-len(packed()) // 16) * 16
    tail = b""
    for buffer, data in weights:
        buffer.offset, buffer.size = end + len(tail), len(data)
        tail += data + bytes(-len(data) % 16)
    head = packed()
    path.write_bytes(bytes(head) + bytes(end - len(head)) + tail)
