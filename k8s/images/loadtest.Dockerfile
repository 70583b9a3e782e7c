# Locust and our experiments, without torch: prepared frames are replayed. From the repository root:
#
#   docker build -f k8s/images/loadtest.Dockerfile -t split-inference-loadtest:0.1.0 .

FROM --platform=$BUILDPLATFORM python:3.11.14-slim-bookworm AS payloads
SHELL ["/bin/bash", "-euo", "pipefail", "-c"]
RUN python -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
WORKDIR /src
COPY pyproject.toml constraints.txt k8s/images/requirements.py ./
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN python requirements.py --only torch > torch.txt \
    && pip install ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} -r torch.txt
RUN python requirements.py edge --without torch > requirements.txt \
    && pip install -c constraints.txt -r requirements.txt
COPY README.md LICENSE ./
COPY split_inference split_inference
COPY serve_app serve_app
COPY edge_sim edge_sim
COPY loadtests loadtests
RUN pip install --no-deps . && mkdir -p /opt/split-inference/payloads \
    && python -m edge_sim payloads embedded:resnet20-cifar10 --inputs split_inference/embedded/samples \
        --out /opt/split-inference/payloads/resnet20-cifar10.payloads

FROM python:3.11.14-slim-bookworm AS build
SHELL ["/bin/bash", "-euo", "pipefail", "-c"]
RUN python -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
WORKDIR /src
COPY pyproject.toml constraints.txt k8s/images/requirements.py ./
RUN python requirements.py load --without torch > requirements.txt \
    && pip install -c constraints.txt -r requirements.txt
COPY README.md LICENSE ./
COPY split_inference split_inference
COPY serve_app serve_app
COPY edge_sim edge_sim
COPY loadtests loadtests
RUN pip install --no-deps .

FROM python:3.11.14-slim-bookworm
LABEL org.opencontainers.image.title=split-inference-loadtest org.opencontainers.image.licenses=Apache-2.0
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends bash ca-certificates curl \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 1000 --user-group --no-create-home --shell /usr/sbin/nologin split-inference
COPY --from=build /opt/venv /opt/venv
COPY --from=payloads /opt/split-inference/payloads /opt/split-inference/payloads
# Locust reads experiments as files.
COPY loadtests /opt/split-inference/loadtests
COPY --chmod=755 k8s/images/wait-for-model k8s/images/upload-results /usr/local/bin/
ENV PATH=/opt/venv/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
WORKDIR /opt/split-inference
USER 1000:1000
CMD ["locust", "--help"]
