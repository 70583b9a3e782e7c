# Everything a user or CI does with this repository. `make help` lists it.
#
#   make TORCH_INDEX=https://download.pytorch.org/whl/cpu demo    torch without gigabytes of CUDA
#   make PYTHON=python3.12 test                                   another Python, 3.11 or later

PYTHON ?= python3
VENV ?= .venv
TORCH_INDEX ?=
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
TORCH := torch==2.13.0
VERSION := $(shell sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
RAY := $(shell sed -n 's/.*ray\[serve\]==\([0-9.]*\).*/\1/p' pyproject.toml)
# docker or podman.
CONTAINER ?= $(shell command -v docker || command -v podman)

export RAY_USAGE_STATS_ENABLED := 0

.DEFAULT_GOAL := help
.PHONY: help install install-dev demo serve check-config test test-fast check format verify \
	bench-codec bench-serving bench-overload bench-fleet bench-clocks bench-policies bench-load bench-capacity loadtest chaos soak compile grpc dashboards k8s-serve-config k8s-check k8s-local-e2e images image-cuda image-edge-arm64 fuzz-wire accuracy accuracy-embedded accuracy-mobilenet train clean

help:  ## This list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-19s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or later is needed: make PYTHON=python3.11 ..."; exit 2; }
	$(PYTHON) -m venv $(VENV)

# Stamps, so that a second `make demo` installs nothing.
$(VENV)/.torch: | $(BIN)/python
	$(PIP) install -q $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) $(TORCH)
	@touch $@

$(VENV)/.installed: pyproject.toml constraints.txt | $(VENV)/.torch
	$(PIP) install -q -c constraints.txt -e '.[edge,serve]'
	@touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt | $(VENV)/.torch
	$(PIP) install -q -c constraints.txt -e '.[dev]'
	@touch $@ $(VENV)/.installed

install: $(VENV)/.installed  ## Create .venv and install what running needs

install-dev: $(VENV)/.installed-dev  ## Create .venv and install what developing needs

demo: $(VENV)/.installed  ## The main job: real images, server-only / shared / device-only, on Ray Serve
	$(BIN)/split-inference demo

serve: $(VENV)/.installed  ## Check config.yaml, then serve it behind HAProxy on 127.0.0.1:8000
	$(BIN)/python -m serve_app.serve config.yaml

check-config: $(VENV)/.installed  ## Refuse a wrong config.yaml with the field's name
	$(BIN)/split-inference check-config config.yaml

# Files of tests run side by side, a file at a time in each process, in the order of tests/conftest.py: xdist's own
# puts files of few tests last, and those are the longest. One torch thread in each of theirs, too.
WORKERS ?= 2
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(WORKERS) --dist loadfile --no-loadscope-reorder
test: $(VENV)/.installed-dev  ## All tests, with real Ray, HTTP, Locust and Chromium; WORKERS=2 files at a time
	$(PYTEST)

test-fast: $(VENV)/.installed-dev  ## Tests without Ray and without whole large networks, under a minute
	$(PYTEST) -m 'not integration and not slow'

check: $(VENV)/.installed-dev  ## Formatting, lint, types, spelling, import directions
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/codespell
	$(BIN)/lint-imports

format: $(VENV)/.installed-dev  ## Format and sort imports
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

verify: $(VENV)/.installed  ## Prove the embedded model's split exact, bit for bit, at every split point
	$(BIN)/split-inference verify embedded:resnet20-cifar10

bench-codec: $(VENV)/.installed  ## Time and size of a frame by codec, beside LZ4, zstd and memcpy
	$(BIN)/python -m benchmarks.bench_codec

bench-serving: $(VENV)/.installed-dev  ## Requests a second, latency and CPU beside the in-process limit and other servers (22 min)
	$(BIN)/python -m benchmarks.bench_serving

bench-overload: $(VENV)/.installed-dev  ## Twice the capacity for a minute, and 1,000 half-sent bodies
	$(BIN)/python -m benchmarks.bench_overload

bench-fleet: $(VENV)/.installed-dev  ## 2,000 devices in real time, a million requests in virtual time (4 min)
	$(BIN)/python -m benchmarks.bench_fleet

bench-clocks: $(VENV)/.installed-dev  ## The same fleet in virtual time and against the real server (12 min)
	$(BIN)/python -m benchmarks.bench_clocks

bench-policies: $(VENV)/.installed-dev  ## The adaptive policy beside every fixed one, over recorded traces
	$(BIN)/python -m benchmarks.bench_policies

bench-load: $(VENV)/.installed-dev  ## The load generator itself: schedule, stall, 10,000 connections, workers (4 min)
	$(BIN)/python -m benchmarks.bench_load

loadtest: $(VENV)/.installed-dev  ## Serve two models, prepare requests, a minute of Poisson load on each, gate and report (4 min)
	$(BIN)/python -m benchmarks.loadtest

bench-capacity: $(VENV)/.installed-dev  ## The capacity search beside queueing theory: M/D/1, M/D/2, M/D/4, three times each (25 min)
	$(BIN)/python -m benchmarks.bench_capacity

chaos: $(VENV)/.installed-dev  ## Kill a replica, kill HAProxy, remove a node, replace the weights, under load that judges every answer
	$(BIN)/python -m benchmarks.chaos

MINUTES ?= 30
soak: $(VENV)/.installed-dev  ## Mixed load for MINUTES=30; memory of every process must not grow
	$(BIN)/python -m benchmarks.soak --minutes $(MINUTES)

compile: $(VENV)/.installed  ## Compile the tails that config.yaml asks for, so that no replica has to
	$(BIN)/split-inference compile config.yaml

dashboards: $(VENV)/.installed  ## Write the Grafana dashboards: ours from the metrics, and those of the installed Ray
	$(BIN)/python -m scripts.make_dashboard

k8s-serve-config: $(VENV)/.installed  ## Make k8s/'s Serve configs and flags from config.yaml and serve_app/serve.py
	$(BIN)/python -m scripts.make_serve_config

k8s-check: $(VENV)/.installed-dev  ## Check the Kubernetes manifests without a cluster: schemas, Pod Security, Ray's own autoscaler, ...
	$(BIN)/python -m k8s.checks

k8s-local-e2e: $(VENV)/.installed-dev  ## Run what overlays/local-cpu says, pod by pod, on this machine: Ray cluster, fleet, Locust
	$(BIN)/python -m k8s.local_e2e

images:  ## Build the serve, edge and loadtest images (docker or podman; CONTAINER=podman chooses)
	@test -n "$(CONTAINER)" || { echo "docker or podman is needed: make CONTAINER=/path/to/one images"; exit 2; }
	$(CONTAINER) build -f k8s/images/serve.Dockerfile -t split-inference-serve:$(VERSION)-ray$(RAY) .
	$(CONTAINER) build -f k8s/images/edge.Dockerfile -t split-inference-edge:$(VERSION) .
	$(CONTAINER) build -f k8s/images/loadtest.Dockerfile -t split-inference-loadtest:$(VERSION) .

image-cuda:  ## Build the serve image with CUDA, several gigabytes
	$(CONTAINER) build -f k8s/images/serve.Dockerfile --build-arg TORCH_INDEX= -t split-inference-serve:$(VERSION)-ray$(RAY)-cuda .

image-edge-arm64:  ## Build the edge image for arm64 boards (needs QEMU or an arm64 builder)
	$(CONTAINER) build --platform linux/arm64 -f k8s/images/edge.Dockerfile -t split-inference-edge:$(VERSION)-arm64 .

grpc: $(VENV)/.installed-dev  ## Generate the gRPC code from its proto
	$(BIN)/python scripts/generate_grpc.py

fuzz-wire: $(VENV)/.installed-dev  ## 300,000 hostile frames through decoder, codec and ingress
	$(BIN)/python -m benchmarks.fuzz_wire --frames 300000

accuracy: accuracy-embedded accuracy-mobilenet  ## Accuracy and bytes of the split models on real images (needs the data)

accuracy-embedded: $(VENV)/.installed
	$(BIN)/python -m benchmarks.accuracy_embedded

accuracy-mobilenet: $(VENV)/.installed
	$(BIN)/python -m benchmarks.accuracy_mobilenet

train: $(VENV)/.installed  ## Train the embedded model again (needs the data; an hour on two cores)
	$(BIN)/python scripts/train_embedded_model.py --write

clean:  ## Remove .venv, caches and run folders
	rm -rf $(VENV) runs build *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
