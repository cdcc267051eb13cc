# syntax=docker/dockerfile:1
# Three images out of one file; docs/deployment.md says how to run them.
#   docker build .                                   the service on CPUs
#   docker build --build-arg DEVICE=cu130 .          the service on NVIDIA GPUs
#   docker build --target client .                   the Python client alone, to build a robot's image on
#   docker build --target robot .                    a simulated robot, for compose.yaml
# What changes seldom comes first: torch, then what else is depended on, then the code. The last layer of the service
# holds nothing but Presage; wheels and pip stay behind in the stages that use them. Any builder will do: there are no
# mounts.
ARG PYTHON=3.11
ARG SERVICE_BASE=python:${PYTHON}-slim-bookworm
# Debian 12's own Python 3.11 and nothing else: no shell, no package manager.
ARG CLIENT_BASE=gcr.io/distroless/python3-debian12:nonroot

FROM ${SERVICE_BASE} AS pip
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /src
RUN python -m venv /opt/pip

FROM pip AS dependencies
# cpu, cu130, ...: the name of one of PyTorch's indexes. TORCH_INDEX= leaves the choice to pip's own configuration.
ARG DEVICE=cpu
ARG TORCH_INDEX=https://download.pytorch.org/whl/${DEVICE}
ARG TORCH=2.13.0
# Only torch itself may come from that index; everything else, also what torch needs, is pip's usual business.
RUN python -m venv --without-pip /opt/presage \
    && /opt/pip/bin/pip --python /opt/presage/bin/python install --no-deps ${TORCH_INDEX:+--index-url "${TORCH_INDEX}"} "torch==${TORCH}"
COPY pyproject.toml constraints.txt ./
# Headers and build files of torch serve those who compile against it.
RUN python -c "import tomllib; p = tomllib.load(open('pyproject.toml', 'rb'))['project']; print(*p['dependencies'], *p['optional-dependencies']['service'], sep='\n')" > requirements.txt \
    && /opt/pip/bin/pip --python /opt/presage/bin/python install -r requirements.txt -c constraints.txt \
    && rm -rf /opt/presage/lib/python*/site-packages/torch/include /opt/presage/lib/python*/site-packages/torch/share
# Nobody runs the packages' own tests here.
RUN find /opt/presage/lib -type d -name tests -prune -exec rm -rf {} + \
    && rm -rf /opt/presage/lib/python*/site-packages/torch/test \
    && find /opt/presage/lib/python*/site-packages/torch/bin -type f ! -name torch_shm_manager -delete

FROM pip AS wheel
COPY pyproject.toml LICENSE README.md ./
COPY clients/python clients/python
COPY planner planner
COPY model model
COPY training training
COPY simulation simulation
COPY server server
COPY cli cli
RUN /opt/pip/bin/pip wheel --no-deps --wheel-dir /wheels . ./clients/python

# Presage alone, as the files that it adds to /opt/presage.
FROM dependencies AS code
COPY --from=wheel /wheels/presage_service-*.whl /wheels/
RUN /opt/pip/bin/pip --python /opt/presage/bin/python install --no-deps --prefix /opt/code /wheels/presage_service-*.whl

# The client and what it needs, as a folder to put on PYTHONPATH.
FROM pip AS client-packages
COPY constraints.txt ./
COPY --from=wheel /wheels/presage-[0-9]*.whl /wheels/
RUN /opt/pip/bin/pip install --target /opt/presage-client -c constraints.txt /wheels/presage-[0-9]*.whl \
    && find /opt/presage-client -type d -name tests -prune -exec rm -rf {} +

FROM client-packages AS robot-packages
RUN /opt/pip/bin/pip install --target /opt/robot --no-deps -c constraints.txt gymnasium cloudpickle Farama-Notifications
COPY simulation /opt/robot/simulation

FROM ${CLIENT_BASE} AS client
COPY --from=client-packages /opt/presage-client /opt/presage-client
ENV PYTHONPATH=/opt/presage-client PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
USER 65532

FROM client AS robot
COPY --from=robot-packages /opt/robot /opt/robot
COPY deploy/robot /opt/robot
ENV PYTHONPATH=/opt/presage-client:/opt/robot
ENTRYPOINT ["python3", "/opt/robot/simulated_robot.py"]

FROM ${SERVICE_BASE} AS service
RUN useradd --uid 10001 --no-create-home --shell /usr/sbin/nologin presage \
    && mkdir /models
COPY --from=dependencies /opt/presage /opt/presage
COPY --from=code /opt/code /opt/presage
ENV PATH=/opt/presage/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
USER 10001
# Everything written at run time (clip uploads, reports) goes to /tmp; the root file system may be mounted read-only.
# Model packages are mounted at /models and named as PRESAGE_MODELS=/models/NAME.
VOLUME ["/tmp"]
WORKDIR /tmp
EXPOSE 8080 50051
HEALTHCHECK --interval=15s --timeout=5s --start-period=60s --retries=3 CMD ["presage", "health"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["presage"]
# Loopback inside the container reaches nobody: listen on all its interfaces, for which the service wants API keys
# (PRESAGE_API_KEYS_FILE) or the explicit word that the network in front of it is trusted.
CMD ["serve", "--host", "0.0.0.0"]
