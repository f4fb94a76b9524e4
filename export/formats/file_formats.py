"""Formats of one file for each endpoint that stands alone (`Endpoint.onnx`): what one is, and where they are found.

A format is a module beside this one, named as the format, with an instance of a class derived from `FileFormat` called
`FORMAT`; how its files are opened in `export.verification.runtimes`; and its name in `FILE_FORMATS`. Options,
verification, manifest, card and publication follow.
"""

from __future__ import annotations

import abc
import dataclasses
import functools
import importlib
import pathlib
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from export.endpoints import Endpoint

if TYPE_CHECKING:
    from export.deployed.deployed_model import DeployedModel
    from tfdecouple.model import DecoupledModel

FILE_FORMATS = ("onnx", "litert")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sources:
    """What files are made of.

    Attributes:
        model: that is exported.
        endpoints: those that have a file, by which `Endpoint.onnx` names it.
        metadata: what every file says of its origin.
        area: folder for what is made on the way.
        say: is told each thing that takes its time.
    """

    model: DecoupledModel
    endpoints: tuple[Endpoint, ...]
    metadata: Mapping[str, str]
    area: pathlib.Path
    say: Callable[[str], Any]

    @functools.cached_property
    def names(self) -> dict[str, str]:
        """Names of the files, without suffix, by endpoints."""
        return {endpoint.name: str(endpoint.onnx) for endpoint in self.endpoints}

    def deployed(self, layout: str) -> DeployedModel:
        """Returns the model as it is deployed, with images in an order of axes."""
        from export.deployed.deployed_model import DeployedModel

        return DeployedModel.from_model(self.model, layout)


class FileFormat(abc.ABC):
    """A format of one file for each endpoint.

    Attributes:
        name: as `--format` has it; of the module and of the folder of the files.
        title: for people.
        suffix: of the files.
        layout: order of axes of the deployed model whose weights are in the files.
        packages: what is imported beside the export's own, of `tfdecouple.runtime.extras`.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    suffix: ClassVar[str]
    layout: ClassVar[str]
    packages: ClassVar[tuple[str, ...]] = ()

    @abc.abstractmethod
    def write(self, sources: Sources, folder: pathlib.Path) -> None:
        """Writes the files into a folder that is there and empty."""

    def calls(self, endpoints: Mapping[str, Any]) -> list[str]:
        """Returns how to call the files, in Markdown, for the card, which describes its `endpoints`."""
        return []


def zeros(array: Mapping[str, Any]) -> str:
    """Returns an input of the card, of one image, in Python: zeros."""
    sizes = ", ".join(map(str, [1, *array["shape"][1:]]))
    return f"np.zeros(({sizes}{',' if len(array['shape']) == 1 else ''}), np.{array['dtype']})"


def file_format(name: str) -> FileFormat:
    """Returns the format of a name."""
    return importlib.import_module(f"export.formats.{name}").FORMAT
