# TensorFlow Serving with an exported model inside. The folder of the export is the context:
# docker build -f docker/serve.Dockerfile --build-arg NAME=quickstart -t quickstart runs/exported/quickstart
ARG TF_SERVING_TAG=latest
FROM tensorflow/serving:${TF_SERVING_TAG}

# As the export calls the model: models.config looks for it there.
ARG NAME
COPY savedmodel /models/${NAME}
COPY models.config batching.config monitoring.config /config/

# Full float32: cards since Ampere round products to 10 bits of mantissa otherwise (TF32), and images are lost.
ENV NVIDIA_TF32_OVERRIDE=0
EXPOSE 8500 8501
# nobody
USER 65534
CMD ["--model_config_file=/config/models.config", "--monitoring_config_file=/config/monitoring.config", "--enable_batching=true", "--batching_parameters_file=/config/batching.config"]
