# The image of docker-compose.yml and docs/kubernetes.md. Never built where this project is developed: no container
# engine there.
FROM python:3.11-slim
RUN apt-get update \
    && apt-get install --yes --no-install-recommends git libegl1 libgl1-mesa-dri \
    && rm -rf /var/lib/apt/lists/* \
    && pip install --no-cache-dir uv
WORKDIR /app
COPY . .
RUN uv sync --frozen --no-dev --extra servers
ENV PATH=/app/.venv/bin:$PATH
