import numpy as np
import pytest
from helpers.models import random_images

from tfdecouple.registry import PICTURES
from tfdecouple.visualization import plots
from tfdecouple.visualization.grids import LINE, WIDTH, draw_grid
from tfdecouple.visualization.pictures import PictureInputs, draw_pictures

pytestmark = pytest.mark.usefixtures("eager_file")


def factor_of(columns):
    """The whole factor that makes so many images of 8 pixels, and a gap of 2 each, about as wide as all grids."""
    return WIDTH // (columns * 10)


def tile(picture, left, top, size, factor):
    """The image at a place of a picture, each of whose pixels must be a square of one colour."""
    pixels = np.asarray(picture)[top : top + size * factor, left : left + size * factor]
    small = pixels[::factor, ::factor]
    np.testing.assert_array_equal(pixels, small.repeat(factor, 0).repeat(factor, 1))
    return small


class TestGrid:
    @pytest.mark.parametrize("group", [(0, 0), (1, 3)])
    def test_grid_shows_every_image_at_its_place_enlarged_by_a_whole_factor(self, group):
        images = random_images(8).reshape(2, 4, 8, 8, 3)
        picture = draw_grid(images, group=group)
        factor, gap = factor_of(4), 2
        pixels = np.asarray(picture).astype(int)
        covered = np.zeros(pixels.shape[:2], bool)
        for row in range(2):
            for column in range(4):
                gaps = [place // size if size else 0 for place, size in zip((row, column), group, strict=True)]
                top = gap + row * (8 * factor + gap) + gaps[0] * 3 * gap
                left = gap + column * (8 * factor + gap) + gaps[1] * 3 * gap
                np.testing.assert_array_equal(tile(picture, left, top, 8, factor), images[row, column])
                covered[top : top + 8 * factor, left : left + 8 * factor] = True
        assert (pixels[~covered] == 255).all()

    @pytest.mark.parametrize(("channels", "shown"), [(1, [0, 0, 0]), (2, [0, 0, 0]), (5, [0, 1, 2])])
    def test_grid_shows_the_first_channels_of_unusual_images(self, channels, shown):
        images = random_images(2, (8, 8, channels)).reshape(1, 2, 8, 8, channels)
        picture = draw_grid(images)
        np.testing.assert_array_equal(tile(picture, 2, 2, 8, factor_of(2)), images[0, 0][..., shown])

    def test_grid_keeps_the_size_of_large_images_unless_a_side_is_given(self):
        images = random_images(2, size=400).reshape(1, 2, 400, 400, 3)
        picture = draw_grid(images)
        np.testing.assert_array_equal(tile(picture, 404, 2, 400, 1), images[0, 1])
        images = random_images(2, size=8).reshape(1, 2, 8, 8, 3)
        means = images.reshape(1, 2, 4, 2, 4, 2, 3).mean((3, 5))
        picture = draw_grid(images, side=5, width=0)
        for column in range(2):
            shown = tile(picture, 2 + column * 6, 2, 4, 1)
            np.testing.assert_allclose(shown, means[0, column], atol=0.5)
        assert draw_grid(images, side=8).size == draw_grid(images).size

    def test_caption_and_labels_of_a_grid_change_no_image(self):
        images = random_images(6).reshape(2, 3, 8, 8, 3)
        text = "What these images show, in more words than a line can hold. " * 3
        plain = np.asarray(draw_grid(images))
        picture = np.asarray(draw_grid(images, text, row_labels=["0.5", "wide label"], column_labels=["a", "b", "c"]))
        margin, header, height = picture.shape[1] - plain.shape[1], LINE, plain.shape[0]
        caption, labelled = picture[header + height :], picture[: header + height]
        np.testing.assert_array_equal(labelled[header:, margin:], plain)
        assert margin > 40 and (labelled[:header, margin:] < 100).any() and (labelled[header:, :margin] < 100).any()
        assert (labelled[:header, :margin] == 255).all()
        assert len(caption) > 30 and (caption < 100).any()
        assert (caption[:, -2:] == 255).all(), "a word runs out of the picture"


def test_two_images_suffice_for_all_pictures_of_an_evaluation(tiny_model):
    pictures, exact = draw_pictures(PictureInputs(tiny_model, random_images(2), most=4))
    assert set(pictures) == {"reconstructions", "samples", "interpolation", "switch"} and exact == 2
    assert PICTURES["switch"](PictureInputs(tiny_model, random_images(1))) is None


def test_principal_components_have_the_largest_variances():
    codes = np.random.default_rng(0).standard_normal((500, 3)) * [1, 5, 3] + 7
    points, shares = plots.project_to_components(codes)
    np.testing.assert_allclose(np.abs(np.corrcoef(points.T, codes[:, 1:].T)[[0, 1], [2, 3]]), 1, atol=0.01)
    np.testing.assert_allclose(shares, [25 / 35, 9 / 35], atol=0.05)
    np.testing.assert_allclose(plots.project_to_components(codes[:, :1])[1], [1, 0])


def test_legend_of_a_projection_names_frequent_labels_and_groups_the_rest():
    labels = np.repeat(np.arange(20), np.arange(20) + 1)
    names = [f"label {number}" for number in range(20)]
    points = np.random.default_rng(0).standard_normal((len(labels), 2))
    figure = plots.plot_projection(points, labels, names, ("x", "y"), "z")
    texts = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert texts == ["other", *names[6:]]
    seen = {(tuple(c.get_facecolor()[0]), c.get_paths()[0].vertices.tobytes()) for c in figure.axes[0].collections}
    assert len(seen) == 15, "two labels look alike"
    unlabelled = plots.plot_projection(np.eye(4, 2), np.full(4, -1), (), ("x", "y"), "z").axes[0]
    assert unlabelled.get_legend() is None and len(unlabelled.collections) == 1


def test_curves_show_the_metrics_and_name_the_runs():
    steps = list(range(1000))
    fall = [50.0, *(4 - step / 1000 for step in steps[1:])]
    fall[600] = 30.0
    a = plots.Curves("a", {"bits_per_dim": (steps, fall)}, {"bits_per_dim": ([500, 999], [3.7, 3.1])})
    b = plots.Curves("b", {name: (steps, steps) for name in ("bits_per_dim", "kl", "dequantization")}, {})
    axes = plots.plot_curves([a, b]).axes
    legend = [text.get_text() for text in axes[0].get_legend().get_texts()]
    assert legend == ["a, training", "a, validation", "b, training"]
    assert [list(line.get_ydata()) for line in axes[0].get_lines()] == [fall, [3.7, 3.1], steps]
    assert [len(panel.get_lines()) for panel in axes] == [3, 1, 1], "no run has a learning rate"
    assert axes[2].get_ylabel() == "log q(u|x), nats/image"
    # The axis ends below the first value and the peak, which would flatten the curves.
    low, high = plots.plot_curves([a]).axes[0].get_ylim()
    assert low < 3.01 and 3.9 < high < 4


def test_confusion_matrix_shows_shares_as_shades_and_counts_as_numbers():
    confusion = {"features": "z", "classifier": "linear SVM", "accuracy": 0.5, "labels": [0, 70]}
    figure = plots.plot_confusion({**confusion, "counts": [[1, 3], [0, 8]]}, ("a",))
    (axes,) = figure.axes
    np.testing.assert_allclose(axes.get_images()[0].get_array(), [[0.25, 0.75], [0, 1]])
    assert {text.get_position(): text.get_text() for text in axes.texts} == {(0, 0): "1", (1, 0): "3", (1, 1): "8"}
    # A label without a name, as of a folder that grew, stands as its number.
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "70"]
    assert figure.get_suptitle() == "z, linear SVM: 50.0 % of 12 images right"
    assert plots.render_figure(figure).width < 800
    many = plots.plot_confusion({**confusion, "labels": range(60), "counts": np.eye(60, dtype=int)}, ())
    assert max(plots.render_figure(many).size) < 1300
