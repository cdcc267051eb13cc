# The service as a container. CPU or CUDA is decided by the build of torch that pip finds: by default the one the
# package index offers for the platform (CUDA on Linux x86_64); for a small CPU image pass PyTorch's CPU index as
# --build-arg PIP_EXTRA_INDEX_URL=... : the pin in constraints.txt admits both.
ARG PYTHON=3.11
FROM python:${PYTHON}-slim AS build
ARG PIP_EXTRA_INDEX_URL=""
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /src
RUN python -m venv /opt/presage
# Dependencies first: a change of code rebuilds seconds, not gigabytes.
COPY pyproject.toml constraints.txt ./
RUN python -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['dependencies'], sep='\n')" > requirements.txt \
    && /opt/presage/bin/pip install -r requirements.txt -c constraints.txt
COPY LICENSE README.md ./
COPY clients/python/src clients/python/src
COPY planner planner
COPY model model
COPY training training
COPY simulation simulation
COPY server server
COPY cli cli
RUN /opt/presage/bin/pip install --no-deps .

FROM python:${PYTHON}-slim
RUN useradd --uid 10001 --no-create-home --shell /usr/sbin/nologin presage
COPY --from=build /opt/presage /opt/presage
ENV PATH=/opt/presage/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
USER 10001
# Everything written at run time (clip uploads) goes to /tmp; the root file system may be mounted read-only.
VOLUME ["/tmp", "/models"]
EXPOSE 8080 50051
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 CMD ["presage", "health"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["presage"]
# Loopback inside the container reaches nobody: listen on all its interfaces, for which the service wants API keys
# (PRESAGE_API_KEYS_FILE) or the explicit word that the network in front of it is trusted.
CMD ["serve", "--host", "0.0.0.0"]
