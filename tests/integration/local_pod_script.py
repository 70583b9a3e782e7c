"""Two small pods, run in namespaces by test_local_pods.py: prints what they see of users, mounts and each other."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from k8s.checks.model import Overlay
from k8s.container_root import ROOT, image_environment, users_are_mapped
from k8s.local_pods import INSIDE, LocalPod, enter, make_bridge
from tests.patience import PATIENCE_S

# A volume above the checkout, as /tmp is where somebody cloned it there: programs have to be found all the same.
ABOVE = [{"name": "above", "mountPath": str(ROOT.parent)}] if str(ROOT.parent) not in ("/", "/tmp") else []
CONTAINER = {
    "name": "c",
    "securityContext": {"readOnlyRootFilesystem": True},
    "volumeMounts": [
        *ABOVE,
        {"name": "tmp", "mountPath": "/tmp"},
        {"name": "shm", "mountPath": "/dev/shm"},
        {"name": "token", "mountPath": "/run/secrets/token", "readOnly": True},
        {"name": "settings", "mountPath": "/etc/settings", "readOnly": True},
    ],
}
SPEC = {
    "securityContext": {"runAsUser": 1000, "runAsGroup": 1000, "fsGroup": 1000},
    "volumes": [
        {"name": "above", "emptyDir": {}},
        {"name": "tmp", "emptyDir": {}},
        {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}},
        {"name": "token", "secret": {"secretName": "token", "defaultMode": 288}},
        {"name": "settings", "configMap": {"name": "settings"}},
    ],
}
OVERLAY = Overlay(
    name="x", documents=({"kind": "ConfigMap", "metadata": {"name": "settings"}, "data": {"a.yaml": "a: 1"}},)
)
LOOK = """
id -u; id -g
for file in /opt/x /etc/x /usr/x /run/secrets/token/x /etc/settings/x /tmp/x /dev/shm/x; do
    (: > $file) 2>/dev/null && echo "can write $file"
done
cat /run/secrets/token/token; echo; cat /etc/settings/a.yaml; echo; stat -c '%a %g' /run/secrets/token/token
head -c 2000000 /dev/zero > /dev/shm/big 2>/dev/null || echo "shm is full"
grep -E 'CapEff|CapBnd|NoNewPrivs' /proc/self/status
ls /proc | grep -c '^[0-9]*$'
python -c 'import split_inference; print("imports")'
"""


def main() -> int:
    make_bridge()
    pods = [
        LocalPod(
            name=f"pod-{number}",
            number=number,
            spec=SPEC,
            overlay=OVERLAY,
            folder=Path(sys.argv[1], f"pod-{number}"),
            secrets={"token": {"token": "secret"}},
        )
        for number in (10, 11)
    ]
    for pod in pods:
        pod.start()
    environment = image_environment("edge.Dockerfile", Path(sys.argv[1]))
    first = pods[0].container(CONTAINER, ["sh", "-c", LOOK], environment=environment, hosts={})
    code = first.wait(PATIENCE_S)
    serve = ["python", "-m", "http.server", "8000", "--directory", "/etc/settings"]
    server = pods[1].container({**CONTAINER, "name": "server"}, serve, environment=environment, hosts={})
    client = pods[0].container(
        {**CONTAINER, "name": "client"},
        ["curl", "-s", "--retry", "50", "--retry-delay", "1", "--retry-all-errors", "http://settings-svc:8000/a.yaml"],
        environment=environment,
        hosts={"settings-svc": [pods[1].address]},
    )
    client.wait(PATIENCE_S)
    same = server.execute(["sh", "-c", "id -u; ls /etc/settings; cat /proc/1/comm"], timeout_s=PATIENCE_S)
    server.terminate(grace_s=5)
    said = {
        "code": code,
        "first": first.output(),
        "errors": first.errors(),
        "client": client.output(),
        "executed": same.stdout,
        "server": server.process.returncode is not None,
        "mapped": users_are_mapped(),
    }
    print(json.dumps(said), flush=True)
    return 0


if __name__ == "__main__":
    if os.environ.get(INSIDE) == "1":
        sys.exit(main())
    sys.exit(enter("tests.integration.local_pod_script", sys.argv[1:]))
