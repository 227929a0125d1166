# syntax=docker/dockerfile:1
# Everything on CPUs: preparation with Ray, pre-training, vectors, report.
#   docker build --file docker/cpu.Dockerfile --tag mmsa-dist:0.1.0-cpu .
#   docker run --rm --user "$(id -u):$(id -g)" --volume "$PWD:/work" mmsa-dist:0.1.0-cpu \
#       embed mine.smi --model model --out vectors
FROM python:3.11-slim-bookworm

# git: the state of the code is recorded in the folder of a run.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends git \
    && rm -rf /var/lib/apt/lists/*

# An index with torch's builds for CPUs, as --build-arg PIP_EXTRA_INDEX_URL=..., saves gigabytes.
ARG PIP_EXTRA_INDEX_URL
WORKDIR /opt/mmsa-dist
COPY requirements.lock ./
RUN pip install --no-cache-dir --no-deps --requirement requirements.lock

COPY pyproject.toml README.md LICENSE ./
COPY kernels kernels
COPY shards shards
COPY mmsa_dist mmsa_dist
COPY launch launch
RUN pip install --no-cache-dir --no-deps --no-build-isolation .

# Whatever number --user gives may write into the home folder, and has a name.
RUN useradd --create-home --uid 10001 mmsa \
    && mkdir /work \
    && chmod 1777 /work /home/mmsa
ENV HOME=/home/mmsa \
    USER=mmsa \
    OMP_NUM_THREADS=1 \
    OMP_WAIT_POLICY=PASSIVE \
    DS_ACCELERATOR=cpu
USER 10001
WORKDIR /work
ENTRYPOINT ["mmsa"]
CMD ["--help"]
