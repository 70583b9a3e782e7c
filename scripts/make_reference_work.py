"""Count the work of the networks that device times are published for, and of those that profiles ship for.

    python -m scripts.make_reference_work [--data FOLDER]

Writes edge_sim/reference_work.json. The mobilenet_v2 of the published table is torchvision's shape: transformers' with
1,000 classes. Counts depend on shapes alone, so that weights are random ones.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from edge_sim.layer_work import work_of
from edge_sim.work import REFERENCE_FILE
from split_inference.model_catalog import EMBEDDED_URI, load_model
from split_inference.model_split import SplittableModel, export_model

CLASSIC = ("resnet18", "resnet34", "resnet50", "vgg16")


def mobilenet_v2() -> SplittableModel:
    """MobileNetV2 1.0 at 224x224 (Sandler et al. 2018)."""
    from transformers import MobileNetV2Config, MobileNetV2ForImageClassification

    return export_model(
        MobileNetV2ForImageClassification(MobileNetV2Config(num_labels=1000)), torch.zeros(1, 3, 224, 224)
    )


def main() -> None:
    """All of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder with models/*.pt2")
    options = parser.parse_args()
    torch.set_num_threads(1)
    models = {name: load_model(f"{name}?weights=random&seed=0").model for name in CLASSIC}
    models["mobilenet_v2"] = mobilenet_v2()
    models["resnet20-cifar10"] = load_model(EMBEDDED_URI).model
    models["mobilenet_v2_imagenet"] = load_model(f"pt2:{options.data}/models/mobilenet_v2_imagenet.pt2").model
    content: dict[str, Any] = {}
    for name, model in sorted(models.items()):
        work = work_of(model)
        content[name] = {"whole": list(work.whole), "heads": {at: list(each) for at, each in work.heads.items()}}
        print(f"{name}: {work.whole}")
    lines = ",\n".join(
        f"{json.dumps(name)}: {json.dumps(facts, separators=(',', ':'))}" for name, facts in content.items()
    )
    REFERENCE_FILE.write_text("{\n" + lines + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
