# The image of `tatok submit --image`, of the RayJob that `tatok submit --kuberay` renders, and of `ray up`.
# Head and workers run the same one; Ray's version is that of constraints.txt.
#
#     docker build --tag registry.example.org/tatok:0.3.0 .
FROM python:3.11-slim

# What others call in here: Ray's cluster launcher rsync and ssh, KubeRay's probes wget, and Triton a C compiler, wherever
# torch.compile runs on a GPU. Tokenizing does without it: its kernels are torch's own, launched by CUDA graphs.
RUN apt-get update && apt-get install --yes --no-install-recommends gcc libc6-dev openssh-client rsync wget \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /opt/tatok
COPY constraints.txt pyproject.toml README.md LICENSE ./
COPY schemas schemas
COPY tatok tatok
COPY pipeline pipeline
COPY jobs jobs
COPY examples examples

# Into the image's own Python, whose commands are in /usr/local/bin: `ray up` works by login shells, which set PATH anew
# and so would not find those of a virtual environment. By the last two Ray starts nodes on AWS and GCP.
RUN pip install --no-cache-dir --disable-pip-version-check --root-user-action=ignore --constraint constraints.txt \
    '.[s3,gcs,azure,hf,http,fast,heif,jxl,transformers,diffusers,tensorboard]' boto3 google-api-python-client
RUN tatok --help > /dev/null && ray --version

ENV RAY_USAGE_STATS_ENABLED=0
