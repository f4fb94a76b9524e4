"""Draws the pictures of docs/design.md in docs/images: the architecture, and one v decoded with several z.

    python docs/figures.py    # takes a minute on two CPU cores

architecture.svg follows the reader's light or dark colours. one_v_three_z.jpg comes from the bundled weights, and from
sample photographs of scikit-image and scikit-learn.
"""

from __future__ import annotations

import pathlib
import sys
import tempfile

from PIL import Image

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import tfdecouple
from tfdecouple.data.sample_images import PHOTOGRAPHS, open_photograph
from tfdecouple.system.process import run_program, start_tensorflow

IMAGES = pathlib.Path(__file__).parent / "images"
# The photograph that gives v, and those that give z.
CONTENT, REFERENCES = "china", ("coffee", "flower", "rocket")
# Width of one picture in pixels, and side of the inset that shows the photograph that gives z.
WIDTH, INSET = 240, 72
# Quality of the JPEG file.
QUALITY = 88

STYLE = """\
  svg { --ink: #1f2328; --paper: #ffffff; --z: #fff1d6; --v: #dcebff; --net: #eceff3; --line: #57606a; }
  @media (prefers-color-scheme: dark) {
    svg { --ink: #e6edf3; --paper: #0d1117; --z: #5a4212; --v: #173a66; --net: #2b313a; --line: #9aa4b0; }
  }
  .paper { fill: var(--paper); }
  .box { fill: var(--net); stroke: var(--line); stroke-width: 1.5; }
  .z { fill: var(--z); }
  .v { fill: var(--v); }
  text { fill: var(--ink); font-family: system-ui, sans-serif; font-size: 17px; text-anchor: middle; }
  .small { font-size: 13px; }
  .arrow { stroke: var(--line); stroke-width: 2; fill: none; marker-end: url(#head); }
  .back { stroke-dasharray: 6 4; }
  #head path { fill: var(--line); }"""
# Boxes: left, top, width, height, class, name, explanation.
BOXES = (
    (20, 150, 150, 80, "", "image x", "height x width x 3"),
    (250, 30, 130, 64, "", "encoder", "q(z|x)"),
    (450, 30, 210, 64, "z", "global code z", "d_z numbers: colours, light"),
    (730, 30, 150, 64, "", "prior flow", "p(z)"),
    (290, 150, 290, 80, "", "invertible flow f(x; z)", "actnorm, 1x1 convolutions, couplings"),
    (670, 150, 210, 80, "v", "local code v", "as large as the image: edges"),
)
# Arrows: class, path. Dashed arrows lead from the codes back to the image.
ARROWS = (
    ("", "M 95 150 V 62 H 246"),
    ("", "M 380 62 H 446"),
    ("", "M 660 62 H 726"),
    ("", "M 520 94 V 146"),
    ("", "M 170 178 H 286"),
    ("", "M 580 178 H 666"),
    ("back", "M 670 206 H 584"),
    ("back", "M 290 206 H 174"),
)
# Texts at arrows: x, y, text.
NOTES = (
    (610, 126, "conditions every coupling"),
    (228, 168, "add noise u"),
    (228, 226, "round"),
    (623, 168, "encode"),
    (623, 226, "decode"),
    (775, 250, "looks like N(0, I)"),
    (450, 286, "z and v decode to exactly the same pixels; z of one image and v of another give a new image"),
)


def draw_architecture() -> str:
    """Returns an SVG file as a text: image, encoder, z, flow and v, with arrows in both directions."""
    lines = [
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 900 304" role="img">',
        "<title>The encoder maps an image to z; the flow, conditioned on z, maps the image to v, and back</title>",
        f"<style>\n{STYLE}\n</style>",
        '<marker id="head" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M 0 0 L 10 5 L 0 10 z"/></marker>',
        '<rect class="paper" width="900" height="304" rx="8"/>',
    ]
    for left, top, width, height, kind, name, text in BOXES:
        x, y = left + width // 2, top + height // 2
        lines += [
            f'<rect class="box {kind}" x="{left}" y="{top}" width="{width}" height="{height}" rx="6"/>',
            f'<text x="{x}" y="{y - 3}">{name}</text><text class="small" x="{x}" y="{y + 18}">{text}</text>',
        ]
    lines += [f'<path class="arrow {kind}" d="{path}"/>' for kind, path in ARROWS]
    lines += [f'<text class="small" x="{x}" y="{y}">{text}</text>' for x, y, text in NOTES]
    return "\n".join([*lines, "</svg>", ""])


def draw_codes() -> Image.Image:
    """Returns a row of pictures: a photograph, and its v decoded with z of each of `REFERENCES` (in the corners)."""
    model = tfdecouple.load_model("photographs")
    photographs = {name: open_photograph(PHOTOGRAPHS[name]) for name in (CONTENT, *REFERENCES)}
    pictures = [photographs[CONTENT]]
    with tempfile.TemporaryDirectory() as folder:
        for name, photograph in photographs.items():
            photograph.save(pathlib.Path(folder) / f"{name}.png")
        source = pathlib.Path(folder) / "content"
        source.mkdir()
        photographs[CONTENT].save(source / "picture.png")
        for name in REFERENCES:
            out = pathlib.Path(folder) / f"with-z-of-{name}"
            result = tfdecouple.switch_folder(model, pathlib.Path(folder) / f"{name}.png", source, out, strength=1.0)
            pictures.append(Image.open(result.written[0]).convert("RGB"))
    height = round(WIDTH * pictures[0].height / pictures[0].width)
    row = Image.new("RGB", (len(pictures) * (WIDTH + 6) - 6, height), "white")
    for index, picture in enumerate(pictures):
        tile = picture.resize((WIDTH, height), Image.Resampling.LANCZOS)
        if index:
            reference = photographs[REFERENCES[index - 1]].copy()
            reference.thumbnail((INSET, INSET))
            corner = (WIDTH - reference.width - 4, height - reference.height - 4)
            tile.paste("white", (corner[0] - 2, corner[1] - 2, WIDTH - 2, height - 2))
            tile.paste(reference, corner)
        row.paste(tile, (index * (WIDTH + 6), 0))
    return row


def main() -> int:
    """Writes both pictures; returns the exit status 0."""
    (IMAGES / "architecture.svg").write_text(draw_architecture(), encoding="utf-8")
    start_tensorflow()
    draw_codes().save(IMAGES / "one_v_three_z.jpg", quality=QUALITY)
    return 0


if __name__ == "__main__":
    sys.exit(run_program(main))
