"""Pods without Kubernetes: containers of a manifest run on this machine as the kubelet would run them, in small.

Each pod has an address of its own on a bridge (so that all may listen on port 8000), each container a process tree and
a file system of its own: a root that cannot be written, the volumes that the manifest mounts, the user and group that
it says, no capability. Made of the kernel's namespaces by `unshare`, `nsenter`, `ip`, `mount`, `setpriv`; whoever uses
this is in namespaces of their own already (`enter`), so that nothing of it is left when they end. Not here: cgroups
(requests and limits), seccomp profiles, images (the repository and its virtual environment stand in), the API server.
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from k8s.checks.model import Document, Overlay, UnavailableError
from k8s.checks.quantities import quantity

ROOT = Path(__file__).resolve().parents[1]
TOOLS = ("unshare", "nsenter", "setpriv", "mount", "ip", "chroot")
INSIDE = "SPLIT_INFERENCE_IN_NAMESPACES"
_NETWORK = ipaddress.ip_network("10.89.0.0/24")
GATEWAY = str(_NETWORK[1])
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


def enter(module: str, arguments: Sequence[str]) -> int:
    """Run a module of ours in namespaces of its own, and give its exit code. Raises UnavailableError.

    As root with all users; otherwise in a user namespace, where the caller is the only user there is.
    """
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if missing:
        raise UnavailableError(f"no {', '.join(missing)} here (Debian: util-linux, iproute2); pods are made with them")
    user = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    spaces = [*user, "--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc"]
    tried = subprocess.run(
        ["unshare", *spaces, "ip", "link", "add", "si0", "type", "bridge"], capture_output=True, text=True, check=False
    )
    if tried.returncode != 0:
        why = " ".join(tried.stderr.split())[:200]
        raise UnavailableError(f"this machine gives no namespaces ({why}); root does, or unprivileged user namespaces")
    command = ["unshare", *spaces, sys.executable, "-m", module, *arguments]
    # In a session of its own, so that a Ctrl-C comes to it once, and from here.
    child = subprocess.Popen(command, cwd=ROOT, env={**os.environ, INSIDE: "1"}, start_new_session=True)

    def interrupt(number: int, frame: FrameType | None) -> None:
        # `unshare` only waits; the process that it started stops its pods and ends, and with it all below.
        with contextlib.suppress(OSError):
            for pid in Path(f"/proc/{child.pid}/task/{child.pid}/children").read_text().split():
                os.kill(int(pid), signal.SIGINT)

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        return child.wait()
    finally:
        child.kill()
        for number, handler in before.items():
            signal.signal(number, handler)


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


def users_are_mapped() -> bool:
    """Whether user 1000 exists here: in a user namespace of somebody who is not root it does not."""
    for line in Path("/proc/self/uid_map").read_text().splitlines():
        first, _, count = map(int, line.split())
        if first <= 1000 < first + count:
            return True
    return False


def make_bridge() -> None:
    """The network that pods are put on, and this process with them."""
    _ip("link", "set", "lo", "up")
    _ip("link", "add", "si0", "type", "bridge")
    _ip("addr", "add", f"{GATEWAY}/{_NETWORK.prefixlen}", "dev", "si0")
    _ip("link", "set", "si0", "up")


def _ip(*words: str, pid: int | None = None) -> None:
    inside = ["nsenter", "--target", str(pid), "--net"] if pid is not None else []
    subprocess.run([*inside, "ip", *words], check=True, timeout=20, capture_output=True)


@dataclass(kw_only=True)
class LocalPod:
    """One pod: an address, volumes, and containers that are started one by one."""

    name: str
    number: int
    """The last part of its address."""
    spec: Document
    overlay: Overlay
    folder: Path
    """Where its volumes and logs are."""
    secrets: Mapping[str, Mapping[str, str]]
    shared: dict[str, Path] = field(default_factory=dict)
    """Volumes that outlive it: claim -> folder."""
    _pause: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        """On the bridge."""
        return str(_NETWORK[self.number])

    def start(self) -> None:
        """Its network, held by a process that does nothing, as Kubernetes' pause container."""
        self._pause = subprocess.Popen(["unshare", "--net", "--kill-child", "--fork", "sleep", "infinity"])
        mine = os.stat("/proc/self/ns/net").st_ino
        deadline_s = time.monotonic() + 10
        while os.stat(f"/proc/{self._pause.pid}/ns/net").st_ino == mine:
            if time.monotonic() > deadline_s:
                raise RuntimeError(f"{self.name} got no network")
            time.sleep(0.01)
        outer, inner = f"si{self.number}", f"pod{self.number}"
        pid = self._pause.pid
        _ip("link", "add", outer, "type", "veth", "peer", "name", inner)
        _ip("link", "set", outer, "master", "si0", "up")
        _ip("link", "set", inner, "netns", str(pid))
        _ip("link", "set", inner, "name", "eth0", pid=pid)
        _ip("link", "set", "lo", "up", pid=pid)
        _ip("addr", "add", f"{self.address}/{_NETWORK.prefixlen}", "dev", "eth0", pid=pid)
        _ip("link", "set", "eth0", "up", pid=pid)
        # Programs ask which of their addresses faces the world.
        _ip("route", "add", "default", "via", GATEWAY, pid=pid)

    def container(
        self, container: Document, words: Sequence[str], *, environment: Mapping[str, str], hosts: Mapping[str, Any]
    ) -> LocalContainer:
        """Start one of its containers with these words; `hosts` is name -> address or addresses."""
        assert self._pause is not None
        folder = self.folder / f"container-{container['name']}"
        folder.mkdir(parents=True)
        (folder / "hosts").write_text(_hosts_file(self.name, self.address, hosts), encoding="utf-8")
        context = {**(self.spec.get("securityContext") or {}), **(container.get("securityContext") or {})}
        plan = {
            "folder": str(folder),
            "mounts": self._mounts(container, folder),
            "read_only": bool(context.get("readOnlyRootFilesystem")),
            "user": context["runAsUser"],
            "group": context["runAsGroup"],
            "words": list(words),
            "environment": dict(environment),
        }
        (folder / "plan.json").write_text(json.dumps(plan), encoding="utf-8")
        log = folder / "log"
        with log.open("wb") as output, (folder / "errors").open("wb") as errors:
            process = subprocess.Popen(
                ["nsenter", "--target", str(self._pause.pid), "--net", "unshare", "--mount", "--pid", "--fork",
                 "--kill-child", sys.executable, "-m", "k8s.local_pods", str(folder / "plan.json")],
                cwd=ROOT, stdin=subprocess.DEVNULL, stdout=output, stderr=errors,
            )  # fmt: skip
        return LocalContainer(name=f"{self.name}/{container['name']}", process=process, folder=folder)

    def _mounts(self, container: Document, folder: Path) -> list[dict[str, Any]]:
        volumes = {volume["name"]: volume for volume in self.spec.get("volumes", [])}
        found = []
        for mount in container.get("volumeMounts", []):
            volume = volumes[mount["name"]]
            entry = {"to": mount["mountPath"], "read_only": bool(mount.get("readOnly"))}
            empty = volume.get("emptyDir")
            if empty is not None and empty.get("medium") == "Memory":
                entry["memory_bytes"] = int(quantity(empty.get("sizeLimit", "64Mi")))
            else:
                entry["from"] = str(self._volume(volume))
            found.append(entry)
        return found

    def _volume(self, volume: Document) -> Path:
        """The folder of a volume, filled once."""
        folder = self.folder / "volumes" / str(volume["name"])
        claim = (volume.get("persistentVolumeClaim") or {}).get("claimName")
        if claim is not None:
            folder = self.shared.setdefault(claim, self.folder / "volumes" / str(claim))
        if folder.is_dir():
            return folder
        folder.mkdir(parents=True)
        group = self.spec.get("securityContext", {}).get("fsGroup", -1)
        content: Mapping[str, str] = {}
        mode = 0o644
        if "secret" in volume:
            content = self.secrets[volume["secret"]["secretName"]]
            mode = volume["secret"].get("defaultMode", 0o644)
        elif "configMap" in volume:
            config_map = self.overlay.find("ConfigMap", volume["configMap"]["name"])
            assert config_map is not None
            content, mode = config_map["data"], volume["configMap"].get("defaultMode", 0o644)
        else:
            # As the kubelet makes them: everybody's, and new files of the pod's group.
            _own(folder, group)
            folder.chmod(0o2777)
            return folder
        for name, text in content.items():
            file = folder / name
            file.write_text(text, encoding="utf-8")
            _own(file, group)
            file.chmod(mode)
        return folder

    def stop(self) -> None:
        """End its network; containers are ended by themselves or with us."""
        if self._pause is not None:
            self._pause.kill()
            self._pause.wait(timeout=10)


def _own(path: Path, group: int) -> None:
    if users_are_mapped():
        os.chown(path, -1, group)


def _hosts_file(name: str, address: str, hosts: Mapping[str, Any]) -> str:
    lines = ["127.0.0.1 localhost", f"{address} {name}"]
    for host, addresses in hosts.items():
        lines += [f"{each} {host}" for each in ([addresses] if isinstance(addresses, str) else addresses)]
    return "\n".join(lines) + "\n"


@dataclass(kw_only=True)
class LocalContainer:
    """One container that was started."""

    name: str
    process: subprocess.Popen[bytes]
    folder: Path

    def output(self) -> str:
        """What it wrote to standard output."""
        return (self.folder / "log").read_text(encoding="utf-8", errors="replace")

    def errors(self) -> str:
        """What it wrote to standard error."""
        return (self.folder / "errors").read_text(encoding="utf-8", errors="replace")

    def last_words(self) -> str:
        """For a line of why."""
        lines = [line.strip() for line in (self.errors() + self.output()).splitlines() if line.strip()]
        return " / ".join(lines[-4:])[-600:] or "it said nothing"

    def wait(self, timeout_s: float) -> int:
        """Its exit code. Raises RuntimeError where it takes longer."""
        try:
            return self.process.wait(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            raise RuntimeError(f"{self.name} is not done after {timeout_s:.0f} s: {self.last_words()}") from None

    def execute(self, words: Sequence[str], *, timeout_s: float) -> subprocess.CompletedProcess[str]:
        """Run something more in it, as the kubelet runs probes and preStop: same user, root, network, processes."""
        plan = json.loads((self.folder / "plan.json").read_text(encoding="utf-8"))
        inside = ["nsenter", "--target", str(self._first()), "--mount", "--pid", "--net", "--root", "--wd"]
        return subprocess.run(
            [*inside, *_privileges(plan), *words],
            env=plan["environment"], capture_output=True, text=True, timeout=timeout_s, check=False,
        )  # fmt: skip

    def status(self) -> dict[str, str]:
        """What the kernel says of its first process: user, capabilities, new privileges."""
        lines = Path(f"/proc/{self._first()}/status").read_text().splitlines()
        return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}

    def _first(self) -> int:
        """The process that is number 1 inside: nsenter became unshare, and that has one child."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return int(children[0])

    def terminate(self, *, grace_s: float) -> None:
        """SIGTERM to its first process, and after the grace an end to all of it."""
        with contextlib.suppress(OSError, IndexError):
            os.kill(self._first(), signal.SIGTERM)
        try:
            self.process.wait(timeout=grace_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(timeout=10)


def _privileges(plan: Mapping[str, Any]) -> list[str]:
    words = ["setpriv", "--no-new-privs", "--bounding-set", "-all", "--inh-caps", "-all"]
    if users_are_mapped():
        user, group = str(plan["user"]), str(plan["group"])
        words += ["--reuid", user, "--regid", group, "--groups", group]
    return [*words, "--"]


def _become(plan: Mapping[str, Any]) -> None:
    """In the container's own namespaces: build its root, go there, give everything up, become its program."""
    root = Path(plan["folder"], "root")
    _mount("--make-rprivate", "/")
    root.mkdir()
    _mount("-t", "tmpfs", "-o", "mode=755,size=64m", "tmpfs", str(root))
    _system(root)
    for tree in sorted({Path(sys.base_prefix), Path(sys.prefix), ROOT}):
        _bind(tree, root / tree.relative_to("/"), read_only=True)
    work = root / "opt" / "split-inference"
    for name in ("tails", "payloads"):
        (work / name).mkdir(parents=True)
    _bind(Path(plan["environment"]["LOCAL_PAYLOADS"]), work / "payloads", read_only=True)
    _bind(ROOT / "loadtests", work / "loadtests", read_only=True)
    shutil.copy(Path(plan["folder"], "hosts"), root / "etc" / "hosts")
    account = f"pod:x:{plan['user']}:{plan['group']}::/nonexistent:/usr/sbin/nologin\n"
    (root / "etc" / "passwd").write_text(f"root:x:0:0:root:/root:/bin/sh\n{account}")
    (root / "etc" / "group").write_text(f"root:x:0:\npod:x:{plan['group']}:\n")
    # A mount below another one comes after it.
    for mount in sorted(plan["mounts"], key=lambda each: len(each["to"])):
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
    words = [*_privileges(plan), *plan["words"]]
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
    _become(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
