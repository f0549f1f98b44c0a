# The image of docker-compose.yml and docs/kubernetes.md. Never built where this project is developed: no container
# engine there.
# On a GPU, Triton compiles its kernels at their first launch: it needs gcc, libc6-dev and Python's headers, which this
# base image has. `graphics` lets OpenGL draw on the GPU too; without it, it is software.
FROM python:3.11-slim
ENV NVIDIA_DRIVER_CAPABILITIES=compute,utility,graphics
RUN apt-get update \
    && apt-get install --yes --no-install-recommends git libegl1 libgl1-mesa-dri gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/* \
    && pip install --no-cache-dir uv
WORKDIR /app
COPY . .
# Compiled once here, or every start would do it: half a minute.
RUN UV_COMPILE_BYTECODE=1 uv sync --frozen --no-dev --extra servers
ENV PATH=/app/.venv/bin:$PATH
