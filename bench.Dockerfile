# The agent's image with what its benchmark needs beside it; deploy/bench-job.yaml runs it.
#
#   docker build --tag REGISTRY/ipmasq-agent-bench:0.1.0 --file bench.Dockerfile \
#       --build-arg AGENT=REGISTRY/ipmasq-agent:0.1.0 .
ARG AGENT=ipmasq-agent:0.1.0
FROM ${AGENT}
# Package versions are Debian stable's own: a pin would only keep security fixes out.
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install --yes --no-install-recommends \
        iperf3 iproute2 nginx-light procps sockperf util-linux wrk \
 && rm -rf /var/lib/apt/lists/*
# What the image for nodes leaves out.
COPY ipmasq_agent/bench /opt/ipmasq-agent/lib/python3.11/site-packages/ipmasq_agent/bench
COPY ipmasq_agent/lab /opt/ipmasq-agent/lib/python3.11/site-packages/ipmasq_agent/lab
COPY requirements /tmp/requirements
RUN python -m pip --python /opt/ipmasq-agent/bin/python install \
        --no-cache-dir --require-hashes --requirement /tmp/requirements/bench.txt \
 && rm -r /tmp/requirements \
 && /opt/ipmasq-agent/bin/python -c "import matplotlib" \
 && command -v iperf3 ip nginx setpriv sockperf sysctl taskset wrk
CMD ["bench"]
