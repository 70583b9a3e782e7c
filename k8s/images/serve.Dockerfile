# The head and the workers of the Ray cluster. From the repository root:
#
#   docker build -f k8s/images/serve.Dockerfile -t split-inference-serve:0.1.0-ray2.60.0 .
#   docker build -f k8s/images/serve.Dockerfile --build-arg TORCH_INDEX= -t split-inference-serve:0.1.0-ray2.60.0-cuda .
#
# Without TORCH_INDEX, torch comes from PyPI with its own CUDA libraries; the node brings the driver.

FROM python:3.11.14-slim-bookworm AS build
SHELL ["/bin/bash", "-euo", "pipefail", "-c"]
# A compiler for tails (execution.compile): a restricted pod has none.
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
RUN python -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
WORKDIR /src
COPY pyproject.toml constraints.txt k8s/images/requirements.py ./
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN python requirements.py --only torch > torch.txt \
    && pip install ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} -r torch.txt
RUN python requirements.py serve --without torch > requirements.txt \
    && pip install -c constraints.txt -r requirements.txt
COPY README.md LICENSE config.yaml ./
COPY split_inference split_inference
COPY serve_app serve_app
COPY edge_sim edge_sim
COPY loadtests loadtests
RUN pip install --no-deps .
# What config.yaml asks to be compiled, for processors with the flags of the one that builds. Build on such a machine.
ENV SPLIT_INFERENCE_CACHE=/opt/split-inference/tails RAY_USAGE_STATS_ENABLED=0
RUN mkdir -p "$SPLIT_INFERENCE_CACHE" && split-inference compile config.yaml \
    && chmod -R a+rX,go-w "$SPLIT_INFERENCE_CACHE"

FROM python:3.11.14-slim-bookworm
LABEL org.opencontainers.image.title=split-inference-serve org.opencontainers.image.licenses=Apache-2.0
# The operator's probe of workers is bash, wget and grep.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends bash ca-certificates grep wget \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 1000 --user-group --no-create-home --shell /usr/sbin/nologin split-inference \
    # A login shell, which the operator's Job that cleans Redis is, forgets PATH.
    && echo "PATH=/opt/venv/bin:\$PATH" > /etc/profile.d/split-inference.sh
COPY --from=build /opt/venv /opt/venv
# Root's, so that replicas can load tails and not change them.
COPY --from=build /opt/split-inference /opt/split-inference
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    RAY_USAGE_STATS_ENABLED=0 \
    SPLIT_INFERENCE_CACHE=/opt/split-inference/tails \
    NVIDIA_VISIBLE_DEVICES=void \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
WORKDIR /opt/split-inference
USER 1000:1000
EXPOSE 8000
CMD ["ray", "--version"]
