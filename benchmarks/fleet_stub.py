"""A server that answers every frame with the same reply, for measuring who asks.

`python -m benchmarks.fleet_stub PORT`.
"""

from __future__ import annotations

import sys

from aiohttp import web

from split_inference.wire import DIGEST_BYTES, REPLY_MEDIA_TYPE, Prediction, ReplyFrame, encode_reply

REPLY = encode_reply(
    ReplyFrame(
        model_digest=bytes(DIGEST_BYTES),
        sample_count=1,
        timings_s={"queue": 0.001, "tail": 0.004, "total": 0.006},
        predictions=((Prediction(index=0, score=1.0, label="stub"),),),
        logits=None,
    )
)


async def answer(request: web.Request) -> web.Response:
    """Read the body, say something."""
    await request.read()
    return web.Response(body=REPLY, content_type=REPLY_MEDIA_TYPE)


def main() -> None:
    """Serve until interrupted."""
    application = web.Application(client_max_size=1 << 24)
    application.router.add_post("/{path:.*}", answer)
    application.router.add_get("/{path:.*}", answer)
    web.run_app(application, host="127.0.0.1", port=int(sys.argv[1]), print=None, access_log=None)


if __name__ == "__main__":
    main()
