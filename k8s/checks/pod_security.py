"""C. Every pod held to Kubernetes' Pod Security level "restricted", as the namespace enforces it.

Restates kubernetes.io/docs/concepts/security/pod-security-standards (1.37) for Linux. The namespace's own label is
checked too: without it nothing is enforced.
"""

from __future__ import annotations

from collections.abc import Iterator

from k8s.checks.model import Document, Finding, Overlay, title
from k8s.checks.pods import Pod, pods_of

_VOLUME_TYPES = frozenset(
    {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret"}
)
_PROFILES = frozenset({"RuntimeDefault", "Localhost"})
_SELINUX_TYPES = frozenset({"", "container_t", "container_init_t", "container_kvm_t", "container_engine_t"})
_SYSCTLS = frozenset(
    {
        "kernel.shm_rmid_forced",
        "net.ipv4.ip_local_port_range",
        "net.ipv4.ip_unprivileged_port_start",
        "net.ipv4.tcp_syncookies",
        "net.ipv4.ping_group_range",
        "net.ipv4.ip_local_reserved_ports",
        "net.ipv4.tcp_keepalive_time",
        "net.ipv4.tcp_fin_timeout",
        "net.ipv4.tcp_keepalive_intvl",
        "net.ipv4.tcp_keepalive_probes",
    }
)


def check_pod_security(overlay: Overlay) -> list[Finding]:
    """Namespaces enforce the level, and every pod passes it."""
    found = [
        Finding(where=title(namespace), problem="pod-security.kubernetes.io/enforce is not restricted")
        for namespace in overlay.of_kind("Namespace")
        if (namespace["metadata"].get("labels") or {}).get("pod-security.kubernetes.io/enforce") != "restricted"
    ]
    if not overlay.of_kind("Namespace"):
        found.append(Finding(where=overlay.name, problem="no Namespace, so that nothing enforces a level"))
    for pod in pods_of(overlay):
        found += [Finding(where=pod.where, problem=problem) for problem in violations(pod)]
    return found


def violations(pod: Pod) -> list[str]:
    """What the admission controller would refuse it for."""
    spec = pod.spec
    context = spec.get("securityContext") or {}
    problems = [f"{key} is set" for key in ("hostNetwork", "hostPID", "hostIPC") if spec.get(key)]
    problems += [f"sysctl {entry['name']}" for entry in context.get("sysctls", []) if entry.get("name") not in _SYSCTLS]
    for volume in spec.get("volumes", []):
        kinds = set(volume) - {"name"}
        if kinds - _VOLUME_TYPES:
            problems.append(f"volume {volume.get('name')} is of type {', '.join(sorted(kinds - _VOLUME_TYPES))}")
    if context.get("runAsUser") == 0:
        problems.append("runAsUser is 0")
    problems += _of_any_context(context, "the pod")
    for container in pod.containers():
        problems += [f"container {container.get('name')}: {each}" for each in _of_container(container, context)]
    return problems


def _of_any_context(context: Document, what: str) -> Iterator[str]:
    selinux = context.get("seLinuxOptions") or {}
    if selinux.get("type", "") not in _SELINUX_TYPES or selinux.get("user") or selinux.get("role"):
        yield f"seLinuxOptions of {what}"
    if (context.get("appArmorProfile") or {}).get("type", "RuntimeDefault") == "Unconfined":
        yield f"appArmorProfile of {what} is Unconfined"
    profile = (context.get("seccompProfile") or {}).get("type")
    if profile is not None and profile not in _PROFILES:
        yield f"seccompProfile of {what} is {profile}"
    if (context.get("windowsOptions") or {}).get("hostProcess"):
        yield f"windowsOptions.hostProcess of {what}"


def _of_container(container: Document, pod_context: Document) -> Iterator[str]:
    context = container.get("securityContext") or {}
    capabilities = context.get("capabilities") or {}
    if context.get("privileged"):
        yield "privileged"
    if context.get("allowPrivilegeEscalation") is not False:
        yield "allowPrivilegeEscalation is not false"
    if "ALL" not in (capabilities.get("drop") or []):
        yield "capabilities.drop lacks ALL"
    if added := set(capabilities.get("add") or []) - {"NET_BIND_SERVICE"}:
        yield f"capabilities.add has {', '.join(sorted(added))}"
    if context.get("runAsNonRoot", pod_context.get("runAsNonRoot")) is not True:
        yield "runAsNonRoot is not true"
    if context.get("runAsUser") == 0:
        yield "runAsUser is 0"
    if (context.get("seccompProfile") or pod_context.get("seccompProfile") or {}).get("type") not in _PROFILES:
        yield "seccompProfile is not RuntimeDefault or Localhost"
    if context.get("procMount", "Default") != "Default":
        yield "procMount is not Default"
    for port in container.get("ports", []):
        if port.get("hostPort"):
            yield f"hostPort {port['hostPort']}"
    yield from _of_any_context(context, "the container")
