"""A payload file of random features, for trying a load generator against the stub server: no model, no torch.

    python -m loadtests.stub_payloads stub.payloads --inputs 64 --body-bytes 2000

The frames are whole and of the size asked for, but what is in them means nothing: a real server refuses their digest.
`python -m edge_sim payloads` makes the real ones.
"""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from split_inference.codec_profile import CodecProfile
from split_inference.feature_codec import FeatureCodec
from split_inference.payload_file import (
    PayloadHeader,
    PayloadInput,
    PayloadModel,
    PayloadOption,
    PayloadTraffic,
    PayloadWriter,
)
from split_inference.wire import DIGEST_BYTES, FRAME_MEDIA_TYPE, FeatureFrame, encode_frame

_PROFILE = CodecProfile(bits=8, compressor="none")
# Header, shape and range of a frame of one tensor with four axes.
_OVERHEAD_BYTES = 80


def write_stub_payloads(
    path: Path,
    *,
    name: str = "stub",
    inputs: int = 64,
    body_bytes: Sequence[int] = (2000,),
    shares: Sequence[float] = (),
    classes: int = 10,
    seed: int = 0,
) -> None:
    """Write a payload file with one option for each of `body_bytes`; `shares` are the traffic's, empty for none."""
    rng = np.random.default_rng(seed)
    digest = hashlib.sha256(name.encode()).hexdigest()
    answers = tuple(int(each) for each in rng.integers(0, classes, inputs))
    codec = FeatureCodec(_PROFILE)
    with PayloadWriter(path, options=len(body_bytes)) as writer:
        for number, size in enumerate(body_bytes):
            elements = max(1, size - _OVERHEAD_BYTES)
            for _ in range(inputs):
                features = rng.normal(size=(1, elements, 1, 1)).astype(np.float32)
                frame = FeatureFrame(
                    model_digest=bytes.fromhex(digest)[:DIGEST_BYTES],
                    split_point=f"cut{number}",
                    sample_count=1,
                    deadline_budget_ms=None,
                    tensors=(codec.encode(features),),
                )
                writer.add(number, encode_frame(frame))
        options = tuple(
            PayloadOption(
                mode="split",
                split_point=f"cut{number}",
                codec=_PROFILE.name,
                media_type=FRAME_MEDIA_TYPE,
                elements=max(1, size - _OVERHEAD_BYTES),
                head_macs_share=0.5,
                reply_bytes=200,
                expected=answers,
                answer=answers,
                sizes=writer.sizes(number),
            )
            for number, size in enumerate(body_bytes)
        )
        writer.finish(
            PayloadHeader(
                model=PayloadModel(name=name, uri=f"stub:{name}", digest=digest, trained=False, macs=0),
                inputs=tuple(PayloadInput(name=f"random-{number}") for number in range(inputs)),
                options=options,
                traffic=tuple(PayloadTraffic(option=number, share=share) for number, share in enumerate(shares)),
            )
        )


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Payload file of random features for the stub server.")
    parser.add_argument("path", type=Path)
    parser.add_argument("--name", default="stub", help="name of the model (%(default)s)")
    parser.add_argument("--inputs", type=int, default=64, help="bodies of each option (%(default)s)")
    parser.add_argument("--body-bytes", type=int, nargs="+", default=[2000], help="an option for each (2000)")
    given = parser.parse_args()
    write_stub_payloads(given.path, name=given.name, inputs=given.inputs, body_bytes=given.body_bytes)
    print(given.path)


if __name__ == "__main__":
    main()
