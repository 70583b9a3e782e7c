"""The card that a server shows of a model: what a client has to know before it sends anything.

Knows the model card's facts, split points and limits. Knows no Ray, no HTTP and no torch tensors.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from serve_app.settings import Limits
from split_inference.codec_profile import COMPRESSOR_IDS, CodecProfile
from split_inference.model_card import UNTRAINED, ModelCard
from split_inference.tiled_jpeg import MAX_SIDE, TileGrid
from split_inference.wire import ACCEPTED_WIRE_VERSIONS

if TYPE_CHECKING:
    from split_inference.model_split import FeatureSpec, SplitPoint

_QUANTIZERS = ("float32", "float16", *(f"u{bits}{suffix}" for bits in range(1, 9) for suffix in ("", "c")))


def card_of(
    card: ModelCard, *, name: str, digest: str, split_points: Sequence[SplitPoint], limits: Limits
) -> dict[str, Any]:
    """What GET on a model answers, as a JSON object."""
    facts = card.model_dump(mode="json")
    if not card.trained:
        facts["untrained_notice"] = UNTRAINED
    return {
        **facts,
        "name": name,
        "digest": digest,
        "wire_versions": list(ACCEPTED_WIRE_VERSIONS),
        "limits": limits.model_dump(mode="json"),
        "split_points": [split_point_entry(point) for point in split_points],
    }


def split_point_entry(point: SplitPoint) -> dict[str, Any]:
    """One split point of the card: name, shapes without the sample axis, and the codecs that its features can have."""
    return {
        "name": point.name,
        "aliases": list(point.aliases),
        "features": [
            {"shape": list(spec.shape), "dtype": spec.dtype, "channel_axis": spec.channel_axis}
            for spec in point.features
        ],
        "codecs": codec_names(point.features),
        "head_macs": point.head_macs,
        "tail_macs": point.tail_macs,
    }


def codec_names(specs: Sequence[FeatureSpec]) -> list[str]:
    """Names of all codec profiles that this server decodes for these features, as a client's profile spells them."""
    names = [CodecProfile.parse(f"{quantizer}+{how}").name for quantizer in _QUANTIZERS for how in COMPRESSOR_IDS]
    tiled = all(max(TileGrid.of((1, *spec.shape), spec.channel_axis).image_size) <= MAX_SIDE for spec in specs)
    return names + [CodecProfile.parse(f"jpeg{quality}").name for quality in range(1, 101) if tiled]
