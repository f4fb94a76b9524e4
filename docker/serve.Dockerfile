# An image of TensorFlow Serving that contains an exported model. The folder of the export is the build context:
# docker build -f docker/serve.Dockerfile --build-arg NAME=quickstart -t quickstart runs/exported/quickstart
ARG TF_SERVING_TAG=latest
FROM tensorflow/serving:${TF_SERVING_TAG}

# NAME must be the name of the export, because models.config refers to the path /models/NAME.
ARG NAME
COPY savedmodel /models/${NAME}
COPY models.config batching.config monitoring.config /config/

# Without this variable NVIDIA GPUs since Ampere round products to TF32, and images are not decoded exactly.
ENV NVIDIA_TF32_OVERRIDE=0
EXPOSE 8500 8501
# 65534 is the user nobody, which owns no files.
USER 65534
CMD ["--model_config_file=/config/models.config", "--monitoring_config_file=/config/monitoring.config", "--enable_batching=true", "--batching_parameters_file=/config/batching.config"]
