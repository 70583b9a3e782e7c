"""The mobile half of shared inference: the head of a model on the device, the rest asked of a server.

    async with EdgeClient("http://127.0.0.1:8000", "embedded:resnet20-cifar10", "layer3", "u2+lz4") as edge:
        answer = await edge.infer(image_bytes)

Imports torch and aiohttp, and never Ray: what runs on a phone does not carry a cluster.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edge_sim.client import Answer, EdgeClient

__all__ = ["Answer", "EdgeClient"]


def __getattr__(name: str) -> Any:
    # On first use: `split-inference --help` lists this package's commands and should not wait for torch.
    if name in __all__:
        from edge_sim import client

        return getattr(client, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
