"""Train the embedded ResNet-20 on CIFAR-10 as JPEGs and write its weights, card and sample images.

    python scripts/train_embedded_model.py --data ../shared/data/cifar10 --epochs 60

The images are lossy JPEGs (quality 75, 4:2:0), so that a network trained on the originals loses ten points on
them: this one is trained on what a device would send. Written to split_inference/embedded/ when --write is given:
resnet20_cifar10.safetensors (batch normalisation folded, float32), its card, and 100 labelled test images.

Ctrl-C leaves the last checkpoint behind; --resume goes on from it.
"""

from __future__ import annotations

import argparse
import io
import itertools
import math
import sys
import time
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from split_inference.embedded.resnet20 import ResNet20, fold_batch_norms
from split_inference.model_card import CardFile
from split_inference.preprocessing import ImagePreprocessing

MEAN = (0.4914, 0.4822, 0.4465)  # per channel over the training images, R G B in 0..1
STD = (0.2470, 0.2435, 0.2616)
NAME = "resnet20_cifar10"
SAMPLES_PER_CLASS = 10
EMBEDDED = Path(__file__).resolve().parent.parent / "split_inference" / "embedded"


def jpeg_bytes(archive: np.lib.npyio.NpzFile) -> list[bytes]:
    """Every image of an archive as a whole JPEG file: the shared header, then its own scan."""
    prefix = archive["jpeg_prefix"].tobytes()
    body, offsets = archive["jpeg_body"].tobytes(), archive["offsets"]
    return [prefix + body[start:end] for start, end in itertools.pairwise(offsets)]


def load_images(path: Path) -> tuple[Tensor, Tensor]:
    """uint8 [N, 3, 32, 32] and int64 labels [N]."""
    with np.load(path) as archive:
        images: NDArray[np.uint8] = np.stack(
            [np.asarray(Image.open(io.BytesIO(data)).convert("RGB")) for data in jpeg_bytes(archive)]
        )
        labels = archive["labels"].astype(np.int64)
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), torch.from_numpy(labels)


def normalise(images_NCHW: Tensor) -> Tensor:
    mean, std = torch.tensor(MEAN).view(3, 1, 1), torch.tensor(STD).view(3, 1, 1)
    return (images_NCHW.float() / 255 - mean) / std


def augment(images_NCHW: Tensor, generator: torch.Generator) -> Tensor:
    """A random 32x32 crop of the image padded by 4 (reflected), mirrored half the time."""
    count = len(images_NCHW)
    padded = nn.functional.pad(images_NCHW.float(), (4, 4, 4, 4), mode="reflect")
    windows = padded.unfold(2, 32, 1).unfold(3, 32, 1)  # [N, 3, 9, 9, 32, 32], a view
    row, column = (torch.randint(0, 9, (count,), generator=generator) for _ in range(2))
    crops = windows[torch.arange(count), :, row, column]
    mirrored = torch.rand(count, generator=generator) < 0.5
    return torch.where(mirrored.view(-1, 1, 1, 1), crops.flip(3), crops)


@torch.inference_mode()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    model.eval()
    right = sum(
        int((model(normalise(x)).argmax(1) == y).sum())
        for x, y in zip(torch.split(images, 500), torch.split(labels, 500), strict=True)
    )
    return right / len(labels)


def train(args: argparse.Namespace) -> ResNet20:
    torch.manual_seed(args.seed)
    generator = torch.Generator().manual_seed(args.seed)
    images, labels = load_images(args.data / "train.npz")
    model = ResNet20(batch_norm=True)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stub lacks it
    moving_average = torch.optim.swa_utils.get_ema_multi_avg_fn(0.998)  # type: ignore[no-untyped-call]
    average = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=moving_average, use_buffers=True)
    decay = [p for p in model.parameters() if p.ndim > 1]
    rest = [p for p in model.parameters() if p.ndim <= 1]
    optimizer = torch.optim.SGD(
        [{"params": decay, "weight_decay": 5e-4}, {"params": rest, "weight_decay": 0.0}],
        lr=args.lr,
        momentum=0.9,
        nesterov=True,
    )
    steps = len(images) // args.batch
    total = args.epochs * steps
    warm = 2 * steps

    def rate(step: int) -> float:
        return (step + 1) / warm if step < warm else 0.5 * (1 + math.cos(math.pi * (step - warm) / (total - warm)))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    start_epoch = 0
    if args.resume and args.checkpoint.exists():
        state = torch.load(args.checkpoint, weights_only=True)
        for part, name in ((model, "model"), (average, "average"), (optimizer, "optimizer"), (schedule, "schedule")):
            part.load_state_dict(state[name])
        generator.set_state(state["generator"])
        start_epoch = state["epoch"]
    loss_of = nn.CrossEntropyLoss(label_smoothing=0.05)
    for epoch in range(start_epoch, args.epochs):
        model.train()
        began, total_loss = time.perf_counter(), 0.0
        order = torch.randperm(len(images), generator=generator)[: steps * args.batch]
        for chosen in torch.split(order, args.batch):
            x = normalise(augment(images[chosen], generator)).to(memory_format=torch.channels_last)
            with torch.autocast("cpu", dtype=torch.bfloat16):
                loss = loss_of(model(x).float(), labels[chosen])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
            average.update_parameters(model)
            total_loss += float(loss.detach())
        print(
            f"epoch {epoch + 1}/{args.epochs} loss {total_loss / steps:.4f} {time.perf_counter() - began:.1f} s",
            file=sys.stderr,
            flush=True,
        )
        args.checkpoint.parent.mkdir(parents=True, exist_ok=True)
        torch.save(
            {
                "model": model.state_dict(),
                "average": average.state_dict(),
                "optimizer": optimizer.state_dict(),
                "schedule": schedule.state_dict(),
                "generator": generator.get_state(),
                "epoch": epoch + 1,
            },
            args.checkpoint,
        )
    trained = ResNet20(batch_norm=True)
    trained.load_state_dict(average.module.state_dict())
    return trained


def write_samples(archive_path: Path, folder: Path) -> None:
    """Ten test images of each class, the first of each, as JPEG files with labels.csv."""
    with np.load(archive_path) as archive:
        images, labels, classes = jpeg_bytes(archive), archive["labels"].tolist(), archive["classes"].tolist()
    folder.mkdir(parents=True, exist_ok=True)
    rows = ["file,label,class"]
    for label, name in enumerate(classes):
        for i in [i for i, other in enumerate(labels) if other == label][:SAMPLES_PER_CLASS]:
            (folder / f"test-{i:05}.jpg").write_bytes(images[i])
            rows.append(f"test-{i:05}.jpg,{label},{name}")
    (folder / "labels.csv").write_text("\n".join([rows[0], *sorted(rows[1:])]) + "\n")


def card(classes: list[str], reached: float, count: int, command: str) -> CardFile:
    return CardFile(
        task="image-classification",
        labels=tuple(classes),
        preprocessing=ImagePreprocessing(
            height=32,
            width=32,
            mean=(255 * MEAN[0], 255 * MEAN[1], 255 * MEAN[2]),
            std=(255 * STD[0], 255 * STD[1], 255 * STD[2]),
        ),
        licence="Apache-2.0 (weights); images: CIFAR-10, Krizhevsky 2009",
        notes=f"ResNet-20, batch normalisation folded; made by: {command}",
        measured={f"top1_on_{count}_cifar10_jpeg_test_images": round(reached, 4)},
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/cifar10"))
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--lr", type=float, default=0.2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--checkpoint", type=Path, default=Path("runs/train/checkpoint.pt"))
    parser.add_argument(
        "--resume", action="store_true", help="go on from the checkpoint; with all epochs done, only measure"
    )
    parser.add_argument("--write", action="store_true", help="write weights, card and samples into the package")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    model = fold_batch_norms(train(args))
    test_images, test_labels = load_images(args.data / "test.npz")
    reached = accuracy(model, test_images, test_labels)
    print(f"accuracy on {len(test_labels)} test images: {reached:.4f}")
    folder = EMBEDDED if args.write else args.checkpoint.parent
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, folder / f"{NAME}.safetensors")
    with np.load(args.data / "test.npz") as archive:
        classes = archive["classes"].tolist()
    options = f"--epochs {args.epochs} --batch {args.batch} --lr {args.lr} --seed {args.seed}"
    command = f"python scripts/train_embedded_model.py {options}"
    made = card(classes, reached, len(test_labels), command)
    (folder / f"{NAME}.card.json").write_text(made.model_dump_json(indent=2) + "\n")
    write_samples(args.data / "test.npz", folder / "samples")


if __name__ == "__main__":
    main()
