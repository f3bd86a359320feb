# The image that deploy/ runs: docker build --tag REGISTRY/ipmasq-agent:0.1.0 .
#
# Pinned by tag, and with it the Debian release that iptables, ipset and nftables come from.
# For builds that are the same to the byte, give the digest that your registry shows:
#   --build-arg BASE=python:3.11-slim-bookworm@sha256:...
ARG BASE=python:3.11-slim-bookworm

FROM ${BASE} AS builder
# The eBPF programs are compiled here, with the headers of libbpf; nodes need its library only.
# Package versions are Debian stable's own: a pin would only keep security fixes out.
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install --yes --no-install-recommends clang libbpf-dev libc6-dev llvm \
 && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY requirements requirements
# An environment without pip, moved whole to the final stage, whose interpreter is at the
# same path, and one to build with. Every package is checked against its hash.
RUN python -m venv --without-pip /opt/ipmasq-agent \
 && python -m venv --without-pip /build \
 && python -m pip --python /opt/ipmasq-agent/bin/python install \
        --no-cache-dir --no-compile --require-hashes --requirement requirements/agent.txt \
 && python -m pip --python /build/bin/python install \
        --no-cache-dir --require-hashes --requirement requirements/build.txt
COPY pyproject.toml hatch_build.py README.md LICENSE ./
COPY ipmasq_agent ipmasq_agent
# Bytecode is made here and trusted as it is: nothing can write it later, on a root that is
# read-only. The lab and the benchmark are not in a wheel; bench.Dockerfile adds them.
RUN /build/bin/python -m hatchling build --directory /dist --target wheel \
 && python -m pip --python /opt/ipmasq-agent/bin/python install \
        --no-cache-dir --no-compile --no-index --no-deps /dist/*.whl \
 && python -m compileall -q --invalidation-mode unchecked-hash /opt/ipmasq-agent/lib

FROM ${BASE}
LABEL org.opencontainers.image.title="ipmasq-agent" \
      org.opencontainers.image.description="Decides which pod traffic leaves a Kubernetes node with the node's address" \
      org.opencontainers.image.version="0.1.0" \
      org.opencontainers.image.licenses="Apache-2.0"
# Both backends of iptables are in its one package. No kmod: the kernel loads what nf_tables
# needs by itself, and a node whose kubelet uses legacy iptables has ip_tables loaded.
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install --yes --no-install-recommends ipset iptables libbpf1 nftables \
 && rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/log/apt/* /var/log/dpkg.log
COPY --from=builder /opt/ipmasq-agent /opt/ipmasq-agent
ENV PATH=/opt/ipmasq-agent/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
# A library or a program that is missing fails the build, not a node.
RUN ipmasq-agent --version \
 && python -c "import ctypes, kubernetes, prometheus_client; ctypes.CDLL('libbpf.so.1')" \
 && iptables-legacy-restore --version \
 && iptables-nft-restore --version \
 && ipset --version \
 && nft --version
# No USER: Kubernetes gives capabilities to root alone (deploy/base/daemonset.yaml says which).
ENTRYPOINT ["ipmasq-agent"]
CMD ["run"]
