# syntax=docker/dockerfile:1
# Three images of one source:
#   api          HTTP, portal, worker and migrations; holds no TensorFlow
#   engine-cpu   the models on a CPU; can also run `tollgate up`
#   engine-gpu   the models on CUDA; needs the NVIDIA container runtime
#
#   docker build --target api -t tollgate-api .

ARG PYTHON=3.11-slim

FROM python:${PYTHON} AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
RUN python -m venv /opt/tollgate
ENV PATH=/opt/tollgate/bin:$PATH
WORKDIR /src

FROM build AS build-api
COPY requirements-api.lock ./
RUN pip install --require-hashes -r requirements-api.lock
COPY pyproject.toml README.md LICENSE ./
COPY migrations ./migrations
COPY app ./app
RUN pip install --no-deps --no-build-isolation .

FROM build AS build-engine-cpu
COPY requirements-up.lock ./
RUN pip install --require-hashes -r requirements-up.lock
COPY pyproject.toml README.md LICENSE ./
COPY migrations ./migrations
COPY app ./app
RUN pip install --no-deps --no-build-isolation .

FROM build AS build-engine-gpu
COPY requirements-engine-gpu.lock ./
RUN pip install --require-hashes -r requirements-engine-gpu.lock
COPY pyproject.toml README.md LICENSE ./
COPY migrations ./migrations
COPY app ./app
RUN pip install --no-deps --no-build-isolation .

FROM python:${PYTHON} AS runtime
RUN useradd --system --uid 10001 --create-home --home-dir /var/lib/tollgate tollgate \
    && install -d -o tollgate -g tollgate /models /var/lib/tollgate/data
ENV PATH=/opt/tollgate/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    TOLLGATE_ENV=production \
    TOLLGATE_LOG_FORMAT=json \
    TOLLGATE_DATA_DIR=/var/lib/tollgate/data \
    TOLLGATE_MODELS_DIR=/models
USER tollgate
WORKDIR /var/lib/tollgate

FROM runtime AS api
COPY --from=build-api /opt/tollgate /opt/tollgate
ENV TOLLGATE_HOST=0.0.0.0
EXPOSE 8000
# 503 from /readyz takes a container out of the balancer; only /livez restarts it.
HEALTHCHECK --interval=10s --timeout=3s --start-period=20s --retries=3 \
    CMD ["tollgate", "health", "http"]
CMD ["tollgate", "api"]

FROM runtime AS engine-cpu
COPY --from=build-engine-cpu /opt/tollgate /opt/tollgate
ENV TOLLGATE_ENGINE_BIND=0.0.0.0:50051
EXPOSE 50051
HEALTHCHECK --interval=10s --timeout=5s --start-period=300s --retries=3 \
    CMD ["tollgate", "health", "engine"]
CMD ["tollgate", "engine"]

FROM runtime AS engine-gpu
COPY --from=build-engine-gpu /opt/tollgate /opt/tollgate
ENV TOLLGATE_ENGINE_BIND=0.0.0.0:50051
EXPOSE 50051
HEALTHCHECK --interval=10s --timeout=5s --start-period=300s --retries=3 \
    CMD ["tollgate", "health", "engine"]
CMD ["tollgate", "engine"]
