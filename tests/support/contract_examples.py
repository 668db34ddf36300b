"""One value of everything that the contract defines, with every field set."""

from __future__ import annotations

from device_agent.contract.chunk import Chunk
from device_agent.contract.desired import (
    PAYLOAD_TYPE,
    Desired,
    DesiredSlot,
    Envelope,
    Signature,
    Trial,
)
from device_agent.contract.manifest import (
    ARTIFACT_TYPE,
    MEDIA_TYPE_CONFIG,
    MEDIA_TYPE_IMAGE_MANIFEST,
    MEDIA_TYPES,
    Blob,
    CenterCrop,
    Descriptor,
    Golden,
    ImageManifest,
    Layout,
    Limits,
    Manifest,
    Measurement,
    Normalize,
    ProfileRef,
    Resize,
    RuntimeRef,
    Softmax,
    TopK,
)
from device_agent.contract.messages import (
    Ack,
    AnyMessage,
    Birth,
    BlobRefused,
    BlobRequest,
    Death,
    Event,
    Feedback,
    MetadataReply,
    MetadataRequest,
    ModelWindow,
    Outcomes,
    ReleaseRef,
    Reported,
    SlotReport,
    SpoolState,
    Telemetry,
    TrialResult,
)
from device_agent.contract.sketch import Sketch
from device_agent.contract.tensors import Tensor, TensorInfo

BOOT_ID = "00112233445566778899aabbccddeeff"
MACHINE_ID = "ffeeddccbbaa99887766554433221100"
DIGEST = "sha256:" + "ab" * 32
OTHER_DIGEST = "sha256:" + "cd" * 32
RELEASE = ReleaseRef(name="animals", version="1.4.0+edge", digest=DIGEST)

MESSAGES: dict[str, AnyMessage] = {
    "birth": Birth(
        boot_id=BOOT_ID,
        connection=3,
        machine_id=MACHINE_ID,
        agent_version="0.1.0",
        profile="raspberry-pi-4",
        runtimes={"onnx_runtime": "1.24.1"},
        protections=("landlock", "seccomp"),
        seed_applied="seed-1",
        reporting_interval_s=10.0,
    ),
    "death": Death(boot_id=BOOT_ID, connection=3, clean=True),
    "reported": Reported(
        boot_id=BOOT_ID,
        revision=7,
        accepted=False,
        reason="expired",
        slots=(
            SlotReport(
                slot="active", state="fetching", release=RELEASE, reason="asked", progress=0.25
            ),
        ),
    ),
    "event": Event(
        boot_id=BOOT_ID,
        seq=5,
        floor=2,
        at_unix_s=1_800_000_000.5,
        kind="deployment",
        state="proving",
        release=RELEASE,
        detail="golden vectors",
    ),
    "telemetry": Telemetry(
        boot_id=BOOT_ID,
        seq=6,
        floor=2,
        windows=(
            ModelWindow(
                release=RELEASE,
                start_unix_s=1_800_000_000.0,
                duration_s=10.0,
                outcomes=Outcomes(ok=9, error=1, deadline=2, rejected=3),
                latency={"compute": Sketch(counts={-80: 8, -79: 1}, total_s=0.18)},
                classes={"281": 9},
                confidence=(0, 0, 0, 0, 0, 0, 0, 1, 3, 5),
                rss_bytes=80_000_000,
                restarts=1,
            ),
        ),
        spool=SpoolState(records=4, bytes=1234, dropped={"telemetry": 2}),
        temperature_c=51.5,
        memory_available_bytes=2_000_000_000,
    ),
    "feedback": Feedback(
        boot_id=BOOT_ID,
        seq=8,
        floor=2,
        at_unix_s=1_800_000_001.25,
        inference_id="b1-17",
        release=RELEASE,
        verdict="wrong",
        predicted="tabby",
        confidence=0.625,
        latency_s=0.0155,
        label="lynx",
        comment="Ohren mit Pinseln: sieht man",
    ),
    "trial-result": TrialResult(
        boot_id=BOOT_ID,
        seq=9,
        floor=2,
        at_unix_s=1_800_000_002.5,
        trial="trial-1",
        release=RELEASE,
        outcome="ok",
        runtime="onnx_runtime",
        runtime_version="1.24.1",
        threads=1,
        latencies_s=(0.0125, 0.0115, 0.012),
        load_s=0.25,
        peak_rss_bytes=90_000_000,
        served=4,
    ),
    "blob-request": BlobRequest(request_id=11, digest=DIGEST, first=64, missing="0580"),
    "metadata-request": MetadataRequest(request_id=12, path="7.root.json", max_bytes=512_000),
    "ack": Ack(boot_id=BOOT_ID, seq=6, credit=32),
    "blob-refused": BlobRefused(request_id=11, digest=DIGEST, reason="not in the catalogue"),
    "metadata-reply": MetadataReply(request_id=12, path="7.root.json", data=b'{"signed": {}}'),
    "metadata-reply-not-found": MetadataReply(request_id=13, path="8.root.json", data=None),
}

DESIRED = Desired(
    fleet="lab",
    device="pi-1",
    revision=7,
    not_after_unix_s=1_800_000_000.0,
    slots=(DesiredSlot(slot="active", release=RELEASE, counter=4),),
    trials=(Trial(id="trial-1", release=RELEASE, counter=4, runs=50, warmup=5),),
)

ENVELOPE = Envelope(
    payload=b'{"type":"desired"}',
    payload_type=PAYLOAD_TYPE,
    signatures=(Signature(keyid="k" * 64, sig=bytes(range(64))),),
)

CHUNK = Chunk(digest=DIGEST, index=258, data=b"\x00\x01\x02chunk")

TENSORS = [
    Tensor("0/in/image", "FP32", (1, 2, 1), b"\x00\x00\x80?\x00\x00\x00@"),
    Tensor("0/out/scores", "INT8", (3,), b"\x01\xff\x7f"),
]

MANIFEST = Manifest(
    name="animals",
    version="1.4.0+edge",
    counter=4,
    profile=ProfileRef(id="raspberry-pi-4", digest=DIGEST),
    runtime=RuntimeRef(name="onnx_runtime", version=">=1.20,<2", providers=("CPU",)),
    task="classification",
    inputs=(TensorInfo("image", "FP32", (1, 3, 224, 224)),),
    outputs=(TensorInfo("scores", "FP32", (1, 1000)),),
    preprocess=(
        Resize(size=256),
        CenterCrop(height=224, width=224),
        Normalize(mean=(127.0, 127.0, 127.0), std=(128.0, 128.0, 128.0)),
        Layout(order="NCHW"),
    ),
    postprocess=(Softmax(), TopK(k=5)),
    limits=Limits(memory_bytes=268_435_456, threads=1, deadline_s=0.5),
    golden=Golden(vectors=4, min_cosine=0.999, min_agreement=1.0),
    blobs=(
        Blob(role="model", digest=DIGEST, size=131_073, chunks=("ab" * 32, "cd" * 32)),
        Blob(role="golden", digest=OTHER_DIGEST, size=10, chunks=("ef" * 32,)),
    ),
    measurements=(
        Measurement(
            what="p95",
            value=0.021,
            unit="s",
            where="host",
            how="wall clock",
            n=200,
            low=0.02,
            high=0.022,
        ),
    ),
    recipe="static int8",
    licence="Apache-2.0",
    source_digest=DIGEST,
    calibration_digest=OTHER_DIGEST,
    tools={"onnxruntime": "1.24.1"},
)

IMAGE_MANIFEST = ImageManifest(
    schema_version=2,
    media_type=MEDIA_TYPE_IMAGE_MANIFEST,
    artifact_type=ARTIFACT_TYPE,
    config=Descriptor(media_type=MEDIA_TYPE_CONFIG, digest=DIGEST, size=900),
    layers=(
        Descriptor(
            media_type=MEDIA_TYPES["model"],
            digest=OTHER_DIGEST,
            size=131_073,
            annotations={"org.opencontainers.image.title": "model"},
        ),
    ),
)
