"""Mistakes that somebody will make one day, each with the check that has to see it and a word of what it says.

A mistake is a function that spoils an overlay's documents. The test gives it a copy of what is rendered, in which the
check finds nothing, so that what is found is the mistake.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import yaml

from k8s.checks.model import Document, Overlay, name_of

Spoil = Callable[[list[Document]], Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Mistake:
    """One of them."""

    name: str
    check: str
    says: str
    """Part of the finding."""
    spoil: Spoil
    overlay: str = "prod-gpu"


MISTAKES: list[Mistake] = []


def mistake(check: str, says: str, *, overlay: str = "prod-gpu") -> Callable[[Spoil], Spoil]:
    """Add the decorated function to the list, under its own name."""

    def add(spoil: Spoil) -> Spoil:
        name = spoil.__name__.replace("_", "-")
        MISTAKES.append(Mistake(name=name, check=check, says=says, spoil=spoil, overlay=overlay))
        return spoil

    return add


def spoiled(overlay: Overlay, spoil: Spoil) -> Overlay:
    """A copy with the mistake in it."""
    documents = copy.deepcopy(list(overlay.documents))
    spoil(documents)
    return Overlay(name=overlay.name, documents=tuple(documents))


def one(documents: list[Document], kind: str, name: str | None = None) -> Document:
    return next(each for each in documents if each["kind"] == kind and name in (None, name_of(each)))


def cluster(documents: list[Document]) -> Document:
    config: Document = one(documents, "RayService")["spec"]["rayClusterConfig"]
    return config


def head(documents: list[Document]) -> Document:
    group: Document = cluster(documents)["headGroupSpec"]
    return group


def group(documents: list[Document], name: str = "cpu") -> Document:
    found: Document = next(each for each in cluster(documents)["workerGroupSpecs"] if each["groupName"] == name)
    return found


def container(of: Document) -> Document:
    found: Document = of["template"]["spec"]["containers"][0]
    return found


def job(documents: list[Document], name: str) -> Document:
    found: Document = one(documents, "Job", name)["spec"]["template"]["spec"]["containers"][0]
    return found


def serve(documents: list[Document], change: Callable[[Any], Any]) -> None:
    """Change the Serve config inside its text."""
    spec = one(documents, "RayService")["spec"]
    config = yaml.safe_load(spec["serveConfigV2"])
    change(config)
    spec["serveConfigV2"] = yaml.safe_dump(config, sort_keys=False)


def deployment(config: Any, application: int = 1) -> Any:
    return config["applications"][application]["deployments"][0]


# A: images and secrets


@mistake("images-are-pinned", "moves")
def image_latest(documents):
    container(group(documents))["image"] = "ghcr.io/OWNER/split-inference-serve:latest"


@mistake("images-are-pinned", "no tag")
def image_without_a_tag(documents):
    container(head(documents))["image"] = "localhost:5000/split-inference-serve"


@mistake("no-secret-in-clear", "REDIS_PASSWORD has its value in clear")
def password_in_clear(documents):
    entry = container(one(documents, "StatefulSet")["spec"])["env"][0]
    del entry["valueFrom"]
    entry["value"] = "hunter2"


@mistake("no-secret-in-clear", "a Secret with content")
def secret_with_content(documents):
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "redis"}, "data": {"password": "aHVudGVyMg=="}}
    documents.append(secret)


@mistake("no-secret-in-clear", "a token of this service", overlay="local-cpu")
def token_as_an_argument(documents):
    job(documents, "edge-fleet")["args"] += ["--token", "si_0123456789abcdefghijklmnopqrstuvwxyz"]


@mistake("no-secret-in-clear", "is a secret's name", overlay="local-cpu")
def secret_in_a_config_map(documents):
    next(each for each in documents if name_of(each).startswith("edge-target"))["data"]["AWS_SECRET_ACCESS_KEY"] = "x"


# B: schemas


@mistake("schemas", "imagePullPolcy")
def typo_in_a_template_of_the_rayservice(documents):
    container(group(documents))["imagePullPolcy"] = "Always"


@mistake("schemas", "complitions", overlay="local-cpu")
def typo_in_a_job(documents):
    one(documents, "Job", "edge-fleet")["spec"]["complitions"] = 2


@mistake("schemas", "no schema for")
def unknown_kind(documents):
    documents.append({"apiVersion": "ray.io/v1", "kind": "RayServise", "metadata": {"name": "x"}})


@mistake("schemas", "is not of type")
def text_for_a_number(documents):
    group(documents)["maxReplicas"] = "four"


@mistake("schemas", "restartPolicyRules", overlay="local-cpu")
def field_of_a_newer_kubernetes(documents):
    rules = [{"action": "Restart", "exitCodes": {"operator": "In", "values": [3]}}]
    job(documents, "edge-fleet")["restartPolicyRules"] = rules


@mistake("schemas", "nmespace")
def typo_in_the_metadata_of_a_custom_resource(documents):
    metadata = one(documents, "PodMonitor")["metadata"]
    metadata["nmespace"] = metadata.pop("namespace")


# C: Pod Security


@mistake("pod-security", "privileged")
def privileged_container(documents):
    container(group(documents, "gpu"))["securityContext"]["privileged"] = True


@mistake("pod-security", "container autoscaler: allowPrivilegeEscalation")
def sidecar_without_security_context(documents):
    del cluster(documents)["autoscalerOptions"]["securityContext"]


@mistake("pod-security", "hostPath")
def folder_of_the_node(documents):
    group(documents)["template"]["spec"]["volumes"].append({"name": "models", "hostPath": {"path": "/models"}})


@mistake("pod-security", "runAsNonRoot")
def group_that_may_be_root(documents):
    del group(documents, "gpu")["template"]["spec"]["securityContext"]["runAsNonRoot"]


@mistake("pod-security", "seccompProfile", overlay="local-cpu")
def job_without_seccomp(documents):
    del one(documents, "Job", "locust-workers")["spec"]["template"]["spec"]["securityContext"]["seccompProfile"]


@mistake("pod-security", "NET_ADMIN", overlay="local-cpu")
def fleet_that_shapes_with_tc(documents):
    job(documents, "edge-fleet")["securityContext"]["capabilities"]["add"] = ["NET_ADMIN"]


@mistake("pod-security", "enforce is not restricted")
def namespace_that_enforces_less(documents):
    one(documents, "Namespace")["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] = "baseline"


# D: the operator's rules


@mistake("operator-rules", "characters; 47 at most")
def long_name(documents):
    one(documents, "RayService")["metadata"]["name"] = "split-inference-for-everybody-in-the-whole-company"


@mistake("operator-rules", "is not so")
def more_at_least_than_at_most(documents):
    group(documents)["minReplicas"] = 9


@mistake("operator-rules", "groups are called cpu")
def two_groups_of_one_name(documents):
    cluster(documents)["workerGroupSpecs"].append(copy.deepcopy(group(documents)))


@mistake("operator-rules", "needs enableInTreeAutoscaling", overlay="loadtest-gpu")
def incremental_upgrade_without_autoscaler(documents):
    cluster(documents)["enableInTreeAutoscaling"] = False


@mistake("operator-rules", "redis-password")
def password_of_redis_in_two_places(documents):
    head(documents)["rayStartParams"]["redis-password"] = "$REDIS_PASSWORD"


@mistake("operator-rules", "text is needed")
def number_among_start_params(documents):
    group(documents)["rayStartParams"]["num-cpus"] = 4


@mistake("operator-rules", "restartPolicy")
def restart_policy_of_workers(documents):
    group(documents)["template"]["spec"]["restartPolicy"] = "Always"


@mistake("operator-rules", "which Ray 2.40.0 does not have")
def token_auth_of_an_old_ray(documents):
    cluster(documents)["rayVersion"] = "2.40.0"


@mistake("operator-rules", "none of")
def upgrade_of_no_kind(documents):
    one(documents, "RayService")["spec"]["upgradeStrategy"]["type"] = "Rolling"


# D: traps


@mistake("flags", "RAY_SERVE_THROUGHPUT_OPTIMIZED is None")
def flags_missing_in_one_group(documents):
    del container(group(documents, "gpu"))["envFrom"]


@mistake("flags", "RAY_SERVE_THROUGHPUT_OPTIMIZED is '0'")
def flag_of_another_value_in_one_group(documents):
    container(group(documents))["env"].append({"name": "RAY_SERVE_THROUGHPUT_OPTIMIZED", "value": "0"})


@mistake("flags", "no flag of make serve")
def flag_that_nobody_else_has(documents):
    container(head(documents))["env"].append({"name": "RAY_SERVE_HAPROXY_TIMEOUT_CLIENT", "value": "30"})


@mistake("ray-rules", "port as-metrics is None")
def port_missing_on_the_head(documents):
    ports = container(head(documents))["ports"]
    ports[:] = [port for port in ports if port["name"] != "as-metrics"]


@mistake("ray-rules", "port haproxy-metrics is None")
def haproxy_port_missing_in_one_group(documents):
    container(group(documents, "gpu"))["ports"].pop()


@mistake("ray-rules", "replicas on the node that must not die")
def head_that_takes_replicas(documents):
    del head(documents)["rayStartParams"]["num-cpus"]


@mistake("ray-rules", "/dev/shm is on no volume")
def read_only_root_without_shared_memory(documents):
    mounts = container(group(documents))["volumeMounts"]
    mounts[:] = [mount for mount in mounts if mount["mountPath"] != "/dev/shm"]


@mistake("ray-rules", "/home/ray is on no volume")
def home_that_cannot_be_written(documents):
    container(group(documents))["env"] = [{"name": "HOME", "value": "/home/ray"}]


@mistake("ray-rules", "no preStop that drains")
def group_without_drain(documents):
    del container(group(documents, "gpu"))["lifecycle"]


@mistake("ray-rules", "below 120")
def grace_of_the_default(documents):
    del group(documents)["template"]["spec"]["terminationGracePeriodSeconds"]


@mistake("ray-rules", "not below terminationGracePeriodSeconds")
def drain_longer_than_the_grace(documents):
    container(group(documents))["lifecycle"]["preStop"]["exec"]["command"][-1] = "600"


@mistake("ray-rules", "minAvailable is no integer")
def budget_as_a_share(documents):
    one(documents, "PodDisruptionBudget")["spec"]["minAvailable"] = "50%"


@mistake("ray-rules", "a budget for the head")
def budget_for_the_head(documents):
    one(documents, "PodDisruptionBudget")["spec"]["selector"]["matchLabels"] = {"ray.io/node-type": "head"}


@mistake("ray-rules", "proxy_location is not EveryNode")
def proxies_on_the_head_only(documents):
    serve(documents, lambda config: config.update(proxy_location="HeadOnly"))


@mistake("ray-rules", "no Service reaches")
def host_of_a_developers_machine(documents):
    serve(documents, lambda config: config["http_options"].update(host="127.0.0.1"))


@mistake("ray-rules", "nobody is there to wake them")
def everything_at_zero_and_no_head(documents):
    def change(config):
        deployment(config, 0).pop("num_replicas")
        deployment(config, 0)["autoscaling_config"] = {"min_replicas": 0, "max_replicas": 1}
        deployment(config, 1)["autoscaling_config"]["min_replicas"] = 0

    serve(documents, change)


@mistake("ray-rules", "asks nobody for a token")
def application_open_to_everybody(documents):
    serve(documents, lambda config: config["applications"][1]["args"].pop("auth"))


@mistake("ray-rules", "version is not v2")
def autoscaler_of_the_default_version(documents):
    del cluster(documents)["autoscalerOptions"]["version"]


@mistake("ray-rules", "more than the 5 cores")
def more_cpus_for_ray_than_the_pod_has(documents):
    group(documents)["rayStartParams"]["num-cpus"] = "8"


@mistake("ray-rules", "no toleration")
def gpu_group_without_toleration(documents):
    del group(documents, "gpu")["template"]["spec"]["tolerations"]


@mistake("ray-rules", "no activeDeadlineSeconds", overlay="local-cpu")
def job_that_may_hang(documents):
    del one(documents, "Job", "locust-master")["spec"]["activeDeadlineSeconds"]


# E: what is served


@mistake("serve-config", "max_ongoing_request")
def typo_in_the_serve_config(documents):
    serve(documents, lambda config: deployment(config).update(max_ongoing_request=9))


@mistake("serve-config", "is the text of none of")
def serve_config_changed_by_hand(documents):
    serve(documents, lambda config: deployment(config).update(max_ongoing_requests=99))


@mistake("serve-config", "has no deployment 'Tail'")
def name_of_no_deployment(documents):
    serve(documents, lambda config: deployment(config).update(name="Tail"))


@mistake("serve-config", "import_path")
def import_path_of_nothing(documents):
    serve(documents, lambda config: config["applications"][1].update(import_path="serve_app.app:build"))


@mistake("serve-config", "is more than max_replicas")
def more_replicas_at_least_than_at_most(documents):
    serve(documents, lambda config: deployment(config)["autoscaling_config"].update(min_replicas=9))


@mistake("serve-config", "no application has the route_prefix")
def model_in_the_catalogue_that_nobody_serves(documents):
    serve(documents, lambda config: config["applications"].pop())


# F: the autoscaler


@mistake("autoscaler", "fit no pod")
def replica_that_fits_no_pod(documents):
    serve(documents, lambda config: deployment(config)["ray_actor_options"].update(num_cpus=5))


@mistake("autoscaler", "at the largest")
def too_few_gpu_pods(documents):
    group(documents, "gpu")["maxReplicas"] = 1


@mistake("autoscaler", "1 pods of group gpu run at rest")
def gpu_pod_that_always_runs(documents):
    group(documents, "gpu").update(minReplicas=1, replicas=1)


@mistake("autoscaler", "fit no pod", overlay="loadtest-gpu")
def mig_slice_that_ray_does_not_know_as_gpu(documents):
    del group(documents, "gpu")["rayStartParams"]["num-gpus"]


@mistake("autoscaler", "fit no pod")
def accelerator_that_no_group_declares(documents):
    serve(documents, lambda config: deployment(config, 2)["ray_actor_options"].update(accelerator_type="H100"))


@mistake("autoscaler", "no group has any")
def gpu_replicas_without_a_gpu_group(documents):
    cluster(documents)["workerGroupSpecs"].pop()


# G: versions


@mistake("versions", "rayVersion is 2.59.0")
def ray_version_that_drifted(documents):
    cluster(documents)["rayVersion"] = "2.59.0"


@mistake("versions", "0.1.0-ray2.59.0")
def image_of_one_group_that_drifted(documents):
    container(group(documents))["image"] = "ghcr.io/OWNER/split-inference-serve:0.1.0-ray2.59.0"


@mistake("versions", "do not go together")
def image_without_cuda_on_gpus(documents):
    container(group(documents, "gpu"))["image"] = container(head(documents))["image"]


@mistake("versions", "the image's tag is 0.0.9", overlay="local-cpu")
def fleet_of_another_version(documents):
    job(documents, "edge-fleet")["image"] = "split-inference-edge:0.0.9"


# H: references


@mistake("references", "has no port metric")
def monitor_of_a_port_that_is_not_there(documents):
    one(documents, "PodMonitor", "ray-workers")["spec"]["podMetricsEndpoints"][0]["port"] = "metric"


@mistake("references", "there is no ConfigMap serve-flags")
def config_map_without_its_hash(documents):
    container(group(documents))["envFrom"][0]["configMapRef"]["name"] = "serve-flags"


@mistake("references", "has no passwd")
def key_that_the_secret_lacks(documents):
    options = cluster(documents)["gcsFaultToleranceOptions"]
    options["redisPassword"]["valueFrom"]["secretKeyRef"]["key"] = "passwd"


@mistake("references", "names the volume shmem")
def mount_of_no_volume(documents):
    container(group(documents))["volumeMounts"][1]["name"] = "shmem"


@mistake("references", "selector chooses no pod")
def service_that_chooses_nobody(documents):
    one(documents, "Service", "redis")["spec"]["selector"] = {"app": "redis"}


@mistake("references", "there is no Service redis-svc")
def address_of_no_service(documents):
    cluster(documents)["gcsFaultToleranceOptions"]["redisAddress"] = "redis-svc:6379"


@mistake("references", "$(TARGET_ULR) is no variable", overlay="local-cpu")
def variable_with_a_typo(documents):
    args = job(documents, "edge-fleet")["args"]
    args[args.index("$(TARGET_URL)")] = "$(TARGET_ULR)"


@mistake("references", "has no port 8001")
def route_to_no_port(documents):
    one(documents, "HTTPRoute")["spec"]["rules"][0]["backendRefs"][0]["port"] = 8001


@mistake("references", "has no listener http")
def route_of_no_listener(documents):
    one(documents, "HTTPRoute")["spec"]["parentRefs"][0]["sectionName"] = "http"


@mistake("references", "which is not ours")
def object_in_the_default_namespace(documents):
    del one(documents, "NetworkPolicy", "monitoring-to-ray")["metadata"]["namespace"]


@mistake("references", "there is no Service split-inference-serve-svc", overlay="loadtest-gpu")
def service_that_an_incremental_upgrade_does_not_have(documents):
    target = next(each for each in documents if name_of(each).startswith("edge-target"))
    target["data"]["TARGET_URL"] = "http://split-inference-serve-svc:8000"


@mistake("references", "has no slo.yml", overlay="local-cpu")
def file_that_no_config_map_brings(documents):
    args = job(documents, "locust-master")["args"]
    args[args.index("/etc/split-inference/slo.yaml")] = "/etc/split-inference/slo.yml"


@mistake("references", "no Dockerfile makes", overlay="local-cpu")
def payloads_that_no_image_has(documents):
    args = job(documents, "locust-workers")["args"]
    args[args.index("--payloads") + 1] = "/opt/split-inference/payloads/resnet34.payloads"


@mistake("references", "has nothing mounted at")
def tokens_missing_in_one_group(documents):
    spec = group(documents, "gpu")["template"]["spec"]
    spec["volumes"] = [volume for volume in spec["volumes"] if volume["name"] != "tokens"]
    mounts = spec["containers"][0]["volumeMounts"]
    mounts[:] = [mount for mount in mounts if mount["name"] != "tokens"]


# I: who reaches whom


@mistake("network-policies", "redis:6379: is let in")
def no_default_deny(documents):
    documents.remove(one(documents, "NetworkPolicy", "default-deny"))
    documents.remove(one(documents, "NetworkPolicy", "head-to-redis"))


@mistake("network-policies", "8265: is let in")
def dashboard_open_to_clients(documents):
    rule = one(documents, "NetworkPolicy", "clients-to-serve")["spec"]["ingress"][0]
    rule["ports"].append({"protocol": "TCP", "port": 8265})


@mistake("network-policies", "the operator -> RayService/split-inference head (headgroup):8265: is kept out")
def operator_without_the_dashboard(documents):
    rule = one(documents, "NetworkPolicy", "operator-to-head")["spec"]["ingress"][0]
    rule["ports"] = [port for port in rule["ports"] if port["port"] != 8265]


@mistake("network-policies", "is let in")
def monitoring_from_everywhere(documents):
    peer = one(documents, "NetworkPolicy", "monitoring-to-ray")["spec"]["ingress"][0]["from"][0]
    peer["namespaceSelector"] = {}


@mistake("network-policies", "a pod in our namespace")
def list_item_too_many(documents):
    # `- podSelector` as an item of its own: "or" where "and" was meant.
    peers = one(documents, "NetworkPolicy", "operator-to-head")["spec"]["ingress"][0]["from"]
    peers.append({"podSelector": {}})


@mistake("network-policies", "a pod in our namespace -> RayService/split-inference head (headgroup):8265: is let in")
def range_of_the_addresses_of_pods(documents):
    peers = one(documents, "NetworkPolicy", "operator-to-head")["spec"]["ingress"][0]["from"]
    peers.append({"ipBlock": {"cidr": "10.0.0.0/8"}})


@mistake("network-policies", "Job/locust-workers -> Job/locust-master:5557: is kept out", overlay="local-cpu")
def locust_master_unreachable(documents):
    documents.remove(one(documents, "NetworkPolicy", "locust-workers-to-master"))


# J: arguments


@mistake("arguments", "--shrd", overlay="local-cpu")
def option_with_a_typo(documents):
    args = job(documents, "edge-fleet")["args"]
    args[args.index("--shard")] = "--shrd"


@mistake("arguments", "of 2 completions", overlay="local-cpu")
def more_shards_than_pods(documents):
    args = job(documents, "edge-fleet")["args"]
    args[args.index("--shard") + 1] = "$(JOB_COMPLETION_INDEX)/4"


@mistake("arguments", "did you mean deadline_s", overlay="local-cpu")
def typo_in_the_scenario(documents):
    data = next(each for each in documents if name_of(each).startswith("edge-scenario"))["data"]
    data["scenario.yaml"] = data["scenario.yaml"].replace("deadline_s:", "deadlin_s:")


@mistake("arguments", "--rte", overlay="local-cpu")
def locust_option_with_a_typo(documents):
    args = job(documents, "locust-master")["args"]
    args[args.index("--rate")] = "--rte"


@mistake("arguments", "expects 2 workers; 3", overlay="local-cpu")
def more_workers_than_the_master_expects(documents):
    one(documents, "Job", "locust-workers")["spec"].update(completions=3, parallelism=3)


@mistake("arguments", "unknown key", overlay="local-cpu")
def typo_in_the_objective(documents):
    data = next(each for each in documents if name_of(each).startswith("loadtest-slo"))["data"]
    data["slo.yaml"] = data["slo.yaml"].replace("min_goodput:", "goodput:")


@mistake("arguments", "which its master's options name", overlay="local-cpu")
def objective_that_workers_cannot_read(documents):
    spec = one(documents, "Job", "locust-workers")["spec"]["template"]["spec"]
    spec["volumes"] = [volume for volume in spec["volumes"] if volume["name"] != "slo"]
    mounts = spec["containers"][0]["volumeMounts"]
    mounts[:] = [mount for mount in mounts if mount["name"] != "slo"]


@mistake("arguments", "num-cpu")
def start_param_with_a_typo(documents):
    params = group(documents)["rayStartParams"]
    params["num-cpu"] = params.pop("num-cpus")


@mistake("arguments", "invalid float value")
def drain_of_no_number(documents):
    container(group(documents))["lifecycle"]["preStop"]["exec"]["command"][-1] = "90s"


@mistake("arguments", "no parser is known for curl", overlay="local-cpu")
def command_that_nobody_checks(documents):
    job(documents, "edge-fleet").update(command=["curl"], args=["http://split-inference-serve-svc:8000"])
