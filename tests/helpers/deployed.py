"""Stands where an export would deploy a model, for tests whose files are there already."""


class NoDeployedModel:
    """Instead of `export.deployed.deployed_model.DeployedModel`."""

    def __init__(self, model, order="NHWC"):
        pass
