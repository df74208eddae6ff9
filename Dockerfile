# One image for workers, requesters and operators: the entry point is the `dialback` command.
#
#   docker build -t dialback:local .
#   docker run --rm dialback:local --help
#
# Needs no BuildKit feature: a classic builder and Podman build it too.
ARG PYTHON_IMAGE=python:3.13-slim

# --- build: a virtual environment with dialback in it -------------------------------------
FROM ${PYTHON_IMAGE} AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_ROOT_USER_ACTION=ignore
WORKDIR /build

# Dependencies first: this layer is rebuilt only when pyproject.toml changes.
COPY pyproject.toml ./
RUN python -m venv --without-pip /opt/dialback \
 && python -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['dependencies'], sep='\n')" > requirements.txt \
 && python -m pip --python /opt/dialback/bin/python install -r requirements.txt

# Then the source. src/dialback/{ingress,...} are links to the folders beside it.
COPY README.md LICENSE ./
COPY ingress/ ingress/
COPY metrics/ metrics/
COPY queue/ queue/
COPY transport/ transport/
COPY src/ src/
RUN python -m pip --python /opt/dialback/bin/python install --no-deps .
COPY examples/ examples/
RUN chmod -R a+rX examples

# --- the image ----------------------------------------------------------------------------
FROM ${PYTHON_IMAGE}
RUN groupadd --gid 10001 dialback \
 && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /app --shell /usr/sbin/nologin dialback

# Engines are looked up in the working directory: examples.fake_llm:FakeLLM, or your own
# (FROM dialback:local, COPY my_engine.py ./).
WORKDIR /app
COPY --from=build /opt/dialback /opt/dialback
COPY --from=build /build/examples examples/

# 0.0.0.0: probes and Prometheus come from outside the container.
ENV PATH=/opt/dialback/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    DIALBACK_STATUS_HOST=0.0.0.0 \
    DIALBACK_STATUS_PORT=8080
EXPOSE 8080

ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="dialback" \
      org.opencontainers.image.description="A NATS JetStream work queue whose workers stream answers over Dynamo's TCP back-channel" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"

USER 10001:10001
# First SIGTERM: drain. The container's stop timeout must be longer than the shutdown budget.
STOPSIGNAL SIGTERM
# /live, not /ready: some orchestrators end what is unhealthy, and a worker that drains or has
# lost its nats-server for a while is not to be ended.
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 \
  CMD ["python", "-c", "import http.client, os; c = http.client.HTTPConnection('127.0.0.1', int(os.environ['DIALBACK_STATUS_PORT']), timeout=3); c.request('GET', '/live'); raise SystemExit(c.getresponse().status != 200)"]
ENTRYPOINT ["dialback"]
CMD ["--help"]
