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
from k8s.container_root import ROOT, privileges, users_are_mapped

TOOLS = ("unshare", "nsenter", "setpriv", "mount", "ip", "chroot")
INSIDE = "SPLIT_INFERENCE_IN_NAMESPACES"
_NETWORK = ipaddress.ip_network("10.89.0.0/24")
GATEWAY = str(_NETWORK[1])


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
                 "--kill-child", sys.executable, "-m", "k8s.container_root", str(folder / "plan.json")],
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
            [*inside, *privileges(plan), *words],
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
