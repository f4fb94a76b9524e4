# Training, and all other commands: docker build -f docker/train.Dockerfile -t tfdecouple .
ARG PYTHON=3.12
FROM python:${PYTHON}-slim-bookworm

# all,gpu brings CUDA, for docker run --gpus all
ARG EXTRAS=all
WORKDIR /source
COPY pyproject.toml setup.cfg README.md LICENSE ./
COPY tfdecouple tfdecouple
COPY export export
# What is installed is this source, whose setup.cfg bounds what it needs.
# hadolint ignore=DL3013
RUN pip install --no-cache-dir ".[${EXTRAS}]" \
    && useradd --create-home --uid 1000 trainer \
    && mkdir -p /work/runs \
    && chown -R trainer /work

# Runs, and what is exported, go into the working folder.
USER 1000
WORKDIR /work
VOLUME /work/runs
ENTRYPOINT ["tfdecouple"]
CMD ["train"]
