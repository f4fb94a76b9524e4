# An image that runs `tfdecouple` with any command: docker build -f docker/train.Dockerfile -t tfdecouple .
ARG PYTHON=3.12
FROM python:${PYTHON}-slim-bookworm

# EXTRAS=all,gpu also installs CUDA, which docker run --gpus all needs.
ARG EXTRAS=all
WORKDIR /source
COPY pyproject.toml setup.cfg README.md LICENSE ./
COPY tfdecouple tfdecouple
COPY export export
# hadolint asks for pinned versions of packages. The only named package is this source, whose setup.cfg bounds the others.
# hadolint ignore=DL3013
RUN pip install --no-cache-dir ".[${EXTRAS}]" \
    && useradd --create-home --uid 1000 trainer \
    && mkdir -p /work/runs \
    && chown -R trainer /work

# Commands write run folders and exports relative to the working folder.
USER 1000
WORKDIR /work
VOLUME /work/runs
ENTRYPOINT ["tfdecouple"]
CMD ["train"]
