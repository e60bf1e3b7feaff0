# Two images of one wheel: `--target runtime` serves models, `--target operator` holds no torch.
#   docker build --target runtime -t thranite-runtime .
ARG PYTHON=3.12

FROM python:${PYTHON}-slim AS base
# PYTHONSAFEPATH: the working directory never shadows a module.
ENV PYTHONSAFEPATH=1 PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1

FROM base AS build
RUN pip install uv
WORKDIR /src
COPY pyproject.toml README.md LICENSE CHANGELOG.md ./
COPY operator operator
COPY runtime runtime
COPY kernels kernels
COPY crds crds
RUN uv build --wheel --out-dir /wheels

FROM base AS operator
RUN --mount=from=build,source=/wheels,target=/wheels \
    wheel=$(ls /wheels/*.whl) && pip install "${wheel}[operator]"
USER 65532:65532
ENTRYPOINT ["python", "-m", "thranite_operator"]

FROM base AS runtime
# Triton compiles its launchers with a C compiler when a kernel is first used.
RUN apt-get update && apt-get install --yes --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*
# Dependencies in a layer of their own: it is by far the largest, and changes seldom.
RUN --mount=from=build,source=/src/pyproject.toml,target=/tmp/pyproject.toml \
    python -c "import tomllib; extras = tomllib.load(open('/tmp/pyproject.toml', 'rb'))['project']['optional-dependencies']; \
print(*extras['runtime'], sep='\n')" > /tmp/requirements.txt && pip install -r /tmp/requirements.txt
RUN --mount=from=build,source=/wheels,target=/wheels \
    wheel=$(ls /wheels/*.whl) && pip install "${wheel}[runtime]"
ENV HOME=/tmp HF_HOME=/models/.hub TRITON_CACHE_DIR=/tmp/triton
USER 65532:65532
EXPOSE 8000 8001
ENTRYPOINT ["thranite"]
CMD ["--help"]
