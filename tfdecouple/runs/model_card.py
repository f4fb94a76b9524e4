"""What every model card begins with, of published weights and of an export: what the model is, and a table of facts."""

from __future__ import annotations

from collections.abc import Mapping

from tfdecouple.image_shapes import Shape, described


def card_head(name: str, shape: Shape, n_bits: int, latent_dim: int | None, facts: Mapping[str, str]) -> list[str]:
    """Returns the first lines of a card, Markdown.

    Args:
        name: of the model.
        shape: of its images.
        n_bits: of each channel.
        latent_dim: of z; None without z.
        facts: the rows of the table.
    """
    images = described(shape) + (f" in {2**n_bits} levels of each channel" if n_bits < 8 else "")
    return [
        f"# {name}",
        "",
        f"A flow of {images}, without a global code."
        if latent_dim is None
        else f"A model of {images} that decouples what an image is globally (z, {latent_dim} numbers) "
        "from its local detail (v, of the image's size).",
        "It was made with tfdecouple, after *Decoupling Global and Local Representations via Invertible Generative "
        "Flows* (Ma, Kong, Zhang and Hovy, [arXiv:2004.11820](https://arxiv.org/abs/2004.11820)).",
        "",
        "| | |",
        "| --- | --- |",
        *(f"| {fact} | {value} |" for fact, value in facts.items()),
    ]
