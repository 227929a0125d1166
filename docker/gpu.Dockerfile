# syntax=docker/dockerfile:1
# Pre-training and embedding on NVIDIA GPUs.
#   docker build --file docker/gpu.Dockerfile --tag mmsa-dist:0.1.0-gpu .
#   docker run --rm --gpus all --shm-size 8g --user "$(id -u):$(id -g)" --volume "$PWD:/work" mmsa-dist:0.1.0-gpu \
#       pretrain --config base.yaml data.shards=shards run.dir=run
FROM nvidia/cuda:12.8.1-devel-ubuntu24.04

# gcc: Triton compiles its launchers. git: the state of the code is recorded in the folder of a run. openssh-client and
# pdsh: with a hostfile `deepspeed` starts the other nodes by them.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends \
        gcc git libc6-dev openssh-client pdsh python3-dev python3-pip python3-venv \
    && rm -rf /var/lib/apt/lists/* \
    && python3 -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH

# torch brings its CUDA libraries and Triton, and faiss-gpu those of CUDA 12 that it needs: these are resolved. All the
# rest is the lock's, without looking for dependencies.
WORKDIR /opt/mmsa-dist
COPY requirements.lock ./
RUN grep -E '^(torch|triton|numpy|packaging)==' requirements.lock > resolved.txt \
    && grep -vE '^(torch|triton|faiss-cpu)==' requirements.lock > rest.txt \
    && pip install --no-cache-dir --requirement resolved.txt faiss-gpu-cu12==1.14.1 \
    && pip install --no-cache-dir --no-deps --requirement rest.txt

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
    DS_ACCELERATOR=cuda
USER 10001
WORKDIR /work
ENTRYPOINT ["mmsa"]
CMD ["--help"]
