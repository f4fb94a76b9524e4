"""A stand-in for the deployed model in tests of exports whose files exist already."""


class NoDeployedModel:
    """An empty class that replaces `export.deployed.deployed_model.DeployedModel`."""

    def __init__(self, model, order="NHWC"):
        pass
