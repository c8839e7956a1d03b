# One image for the head and every node, for CPUs or for NVIDIA GPUs:
#
#   docker build -t rayburst .
#   docker build -t rayburst:cuda --build-arg FLAVOUR=cuda .
#
# CUDA comes with torch's own wheels: a host needs its driver and NVIDIA's container toolkit. The
# user is KubeRay's, `ray` (1000); wget is what KubeRay's probes call.
ARG FLAVOUR=cpu

FROM python:3.11-slim-bookworm AS base
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
# hadolint ignore=DL3008  # Debian keeps only the newest patch of a version
RUN apt-get update \
    && apt-get install -y --no-install-recommends openssh-client procps rsync wget \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 1000 --shell /bin/bash ray
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PYTHONUNBUFFERED=1

FROM base AS cpu
RUN pip install --no-cache-dir torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu

FROM base AS cuda
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
RUN pip install --no-cache-dir torch==2.13.0

# hadolint ignore=DL3006  # a stage of this file, not an image without a tag
FROM ${FLAVOUR}
WORKDIR /opt/rayburst
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY cluster_configs cluster_configs
COPY platform platform
RUN pip install --no-cache-dir -c constraints.txt .
# what a cluster runs from its image: `serve deploy` imports serve_apps on every node
COPY jobs jobs
COPY serve_apps serve_apps
ENV PYTHONPATH=/opt/rayburst
USER 1000
WORKDIR /home/ray
CMD ["rayburst", "--help"]
