"""The inside of a container, without a runtime: its root from the machine's own programs, its volumes, its privileges.

`python -m k8s.container_root PLAN.json` is started by local_pods.py in namespaces of the container's own. It puts a
root together on a tmpfs, mounts what the plan says, goes there, gives up every right, and becomes the program.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
# Of the machine's /etc, what programs look up; accounts and hosts are the pod's own.
_ETC = [
    "alternatives",
    "ca-certificates",
    "ld.so.cache",
    "ld.so.conf",
    "ld.so.conf.d",
    "localtime",
    "mime.types",
    "nsswitch.conf",
    "profile",
    "protocols",
    "services",
    "ssl",
]
OPEN_FILES = 65536
_DEVICES = ("full", "null", "random", "urandom", "zero")


def users_are_mapped() -> bool:
    """Whether user 1000 exists here: in a user namespace of somebody who is not root it does not."""
    for line in Path("/proc/self/uid_map").read_text().splitlines():
        first, _, count = map(int, line.split())
        if first <= 1000 < first + count:
            return True
    return False


def raise_open_files() -> int:
    """Allow this process and its children as many open files as runtimes give containers, and say how many it became.

    The operator's `ulimit -n 65536` asks for no more. Where there is no right to raise the hard limit, that stays.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY or hard > OPEN_FILES:
        hard = OPEN_FILES
    for limit in (OPEN_FILES, hard):
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
            return limit
    return soft


def privileges(plan: Mapping[str, Any]) -> list[str]:
    """What a command of a container begins with: no capability, no new privileges, the plan's user where it exists."""
    words = ["setpriv", "--no-new-privs", "--bounding-set", "-all", "--inh-caps", "-all"]
    if users_are_mapped():
        user, group = str(plan["user"]), str(plan["group"])
        words += ["--reuid", user, "--regid", group, "--groups", group]
    return [*words, "--"]


def become(plan: Mapping[str, Any]) -> None:
    """Build the root, go there, give everything up, become the program; does not return."""
    root = Path(plan["folder"], "root")
    _mount("--make-rprivate", "/")
    root.mkdir()
    _mount("-t", "tmpfs", "-o", "mode=755,size=64m", "tmpfs", str(root))
    _system(root)
    work = root / "opt" / "split-inference"
    for name in ("tails", "payloads"):
        (work / name).mkdir(parents=True)
    _bind(Path(plan["environment"]["LOCAL_PAYLOADS"]), work / "payloads", read_only=True)
    _bind(ROOT / "loadtests", work / "loadtests", read_only=True)
    shutil.copy(Path(plan["folder"], "hosts"), root / "etc" / "hosts")
    account = f"pod:x:{plan['user']}:{plan['group']}::/nonexistent:/usr/sbin/nologin\n"
    (root / "etc" / "passwd").write_text(f"root:x:0:0:root:/root:/bin/sh\n{account}")
    (root / "etc" / "group").write_text(f"root:x:0:\npod:x:{plan['group']}:\n")
    trees = {str(tree) for tree in (Path(sys.base_prefix), Path(sys.prefix), ROOT)}
    programs = [{"from": tree, "to": tree, "read_only": True} for tree in trees]
    # A mount below another one comes after it: a checkout below /tmp, too.
    for mount in sorted([*programs, *plan["mounts"]], key=lambda each: len(each["to"])):
        to = root / mount["to"].lstrip("/")
        if "memory_bytes" in mount:
            to.mkdir(parents=True, exist_ok=True)
            _mount("-t", "tmpfs", "-o", f"mode=1777,size={mount['memory_bytes']}", "tmpfs", str(to))
        else:
            _bind(Path(mount["from"]), to, read_only=mount["read_only"])
    raise_open_files()
    if plan["read_only"]:
        _mount("-o", "remount,ro,bind", str(root))
    os.chroot(root)
    os.chdir("/opt/split-inference")
    words = [*privileges(plan), *plan["words"]]
    os.execvpe(words[0], words, plan["environment"])


def _system(root: Path) -> None:
    """What an image of Debian has: programs and libraries, and the kernel's file systems."""
    for name in ("bin", "sbin", "lib", "lib32", "lib64", "libx32", "usr"):
        source = Path("/", name)
        if source.is_symlink():
            (root / name).symlink_to(os.readlink(source))
        elif source.is_dir():
            _bind(source, root / name, read_only=True)
    for name in ("etc", "proc", "sys", "dev", "run", "tmp", "var", "home"):
        (root / name).mkdir()
    for name in _ETC:
        source = Path("/etc", name)
        if source.is_dir():
            shutil.copytree(source, root / "etc" / name, symlinks=True, ignore=shutil.ignore_patterns("private"))
        elif source.exists():
            shutil.copy(source, root / "etc" / name)
    _mount("-t", "proc", "proc", str(root / "proc"))
    _bind(Path("/sys"), root / "sys", read_only=True)
    for name in _DEVICES:
        (root / "dev" / name).touch()
        _mount("--bind", f"/dev/{name}", str(root / "dev" / name))
    for name, target in (("fd", "fd"), ("stdin", "fd/0"), ("stdout", "fd/1"), ("stderr", "fd/2")):
        (root / "dev" / name).symlink_to(f"/proc/self/{target}")
    (root / "dev" / "shm").mkdir(mode=0o1777)
    # `command: [wait-for-model, ...]`: images have the scripts on their PATH.
    _bind(ROOT / "k8s" / "images", root / "run" / "scripts", read_only=True)


def _bind(source: Path, to: Path, *, read_only: bool) -> None:
    to.mkdir(parents=True, exist_ok=True)
    _mount("--rbind", str(source), str(to))
    if read_only:
        _mount("-o", "remount,ro,bind", str(to))


def _mount(*words: str) -> None:
    made = subprocess.run(["mount", *words], capture_output=True, text=True, timeout=20, check=False)
    if made.returncode != 0:
        raise RuntimeError(f"mount {' '.join(words)}: {made.stderr.strip()}")


def image_environment(dockerfile: str, payloads: Path) -> dict[str, str]:
    """ENV of a Dockerfile's last stage, with the virtual environment of this process in place of the image's."""
    text = (ROOT / "k8s" / "images" / dockerfile).read_text(encoding="utf-8")
    last = text[text.rfind("\nFROM ") :].replace("\\\n", " ")
    found = dict(pair.split("=", 1) for line in re.findall(r"^ENV (.*)$", last, re.MULTILINE) for pair in line.split())
    path = [str(Path(sys.prefix, "bin")), "/run/scripts", "/usr/local/bin", "/usr/bin", "/usr/sbin", "/bin", "/sbin"]
    return {**found, "PATH": ":".join(path), "LOCAL_PAYLOADS": str(payloads), "LANG": "C.UTF-8"}


if __name__ == "__main__":
    become(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
