"""Make the gRPC code from split_inference/grpc/inference.proto; `--check` says whether what is there is that code.

Needs grpcio-tools (the dev extra).
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PROTO = Path("split_inference/grpc/inference.proto")
GENERATED = ("inference_pb2.py", "inference_pb2.pyi", "inference_pb2_grpc.py")


def generate(into: Path) -> None:
    """Write the generated files below `into`, as packages expect them."""
    subprocess.run(
        [
            sys.executable,
            "-m",
            "grpc_tools.protoc",
            f"--proto_path={ROOT}",
            f"--python_out={into}",
            f"--pyi_out={into}",
            f"--grpc_python_out={into}",
            str(ROOT / PROTO),
        ],
        check=True,
    )


def main() -> int:
    """Generate, or compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 where the files differ")
    options = parser.parse_args()
    if not options.check:
        generate(ROOT)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        generate(Path(folder))
        for name in GENERATED:
            there, made = ROOT / PROTO.parent / name, Path(folder) / PROTO.parent / name
            if not there.is_file() or there.read_bytes() != made.read_bytes():
                print(f"{there} is not what the proto gives; run make grpc", file=sys.stderr)
                return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
