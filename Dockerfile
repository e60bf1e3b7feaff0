# Two images of one wheel: `--target runtime` serves models, `--target operator` holds no torch.
#   docker build --target runtime -t thranite/runtime .
# BASE: an image with Python 3.11 or newer and its venv module; for runtime also with apt, and Python.h if its python3 is
# not the distribution's own.
ARG BASE=python:3.12-slim

FROM ${BASE} AS base
# PYTHONSAFEPATH: the working directory never shadows a module.
ENV PATH=/opt/venv/bin:$PATH PYTHONSAFEPATH=1 PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1

FROM base AS build
RUN python3 -m venv /opt/venv && pip install build hatchling
WORKDIR /src
COPY pyproject.toml README.md LICENSE CHANGELOG.md ./
COPY operator operator
COPY runtime runtime
COPY kernels kernels
COPY crds crds
RUN python -m build --wheel --no-isolation --outdir /out && \
    for extra in operator runtime; do python -c "import sys, tomllib; \
extras = tomllib.load(open('pyproject.toml', 'rb'))['project']['optional-dependencies']; \
print(*extras[sys.argv[1]], sep='\n')" $extra > /out/$extra.txt; done

FROM build AS operator-packages
RUN python3 -m venv --clear /opt/venv && pip install -r /out/operator.txt && pip install --no-deps /out/*.whl && \
    pip uninstall --yes pip setuptools

FROM base AS operator
COPY --from=operator-packages /opt/venv /opt/venv
USER 10001:0
ENTRYPOINT ["python", "-m", "thranite_operator"]

FROM base AS runtime
# Triton compiles its launchers with a C compiler and Python.h when a kernel is first used. Debian has it in a package.
RUN header=$(python3 -c "import sysconfig; print(sysconfig.get_path('include', 'posix_prefix'))")/Python.h && \
    apt-get update && apt-get install --yes --no-install-recommends gcc libc6-dev && \
    { test -f "$header" || apt-get install --yes --no-install-recommends libpython3-dev; } && \
    { test -f "$header" || { echo "BASE lacks $header, the C headers of its python3: Triton needs them. Install them" \
        "in BASE, or build on an image that has them, such as python:3.12-slim." >&2; exit 1; }; } && \
    rm -rf /var/lib/apt/lists/*
# Dependencies in a layer of their own: it is by far the largest, and changes seldom.
COPY --from=build /out/runtime.txt /tmp/runtime.txt
RUN python3 -m venv /opt/venv && pip install -r /tmp/runtime.txt
COPY --from=build /out/*.whl /tmp/
RUN pip install --no-deps /tmp/*.whl
ENV HOME=/tmp HF_HOME=/tmp/huggingface TRITON_CACHE_DIR=/tmp/triton
USER 10001:0
EXPOSE 8000 8001
ENTRYPOINT ["thranite"]
CMD ["--help"]
