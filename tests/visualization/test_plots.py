import numpy as np

from tfdecouple.visualization import plots


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
    steps = list(range(100))
    fall = [50.0, *(4 - step / 100 for step in steps[1:])]
    a = plots.Curves("a", {"bits_per_dim": (steps, fall)}, {"bits_per_dim": ([50, 99], [3.7, 3.1])})
    b = plots.Curves("b", {name: (steps, steps) for name in ("bits_per_dim", "kl", "dequantization")}, {})
    axes = plots.plot_curves([a, b]).axes
    legend = [text.get_text() for text in axes[0].get_legend().get_texts()]
    assert legend == ["a, training", "a, validation", "b, training"]
    assert [list(line.get_ydata()) for line in axes[0].get_lines()] == [fall, [3.7, 3.1], steps]
    assert [len(panel.get_lines()) for panel in axes] == [3, 1, 1], "no run has a learning rate"
    assert axes[2].get_ylabel() == "log q(u|x), nats/image"
    # The first values, far above all others, do not press them together.
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
