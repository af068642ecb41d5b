# The image of `tatok submit --image` and of the RayJob that `tatok submit --kuberay` renders.
# Head and workers run the same one; Ray's version is that of constraints.txt.
#
#     docker build --tag registry.example.org/tatok:0.1.0 .
FROM python:3.11-slim

WORKDIR /opt/tatok
COPY constraints.txt pyproject.toml README.md LICENSE ./
COPY schemas schemas
COPY tatok tatok
COPY pipeline pipeline
COPY jobs jobs

RUN python -m venv /opt/venv
RUN /opt/venv/bin/pip install --no-cache-dir --disable-pip-version-check --constraint constraints.txt '.[s3,gcs,azure]'
RUN /opt/venv/bin/tatok --help > /dev/null && /opt/venv/bin/ray --version

ENV PATH=/opt/venv/bin:$PATH RAY_USAGE_STATS_ENABLED=0
