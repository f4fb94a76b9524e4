"""Projections of codes, and plots of them and of figures over a training."""

import numpy as np

from tfdecouple.visualization.plots import Curves, curves_figure, projection_figure
from tfdecouple.visualization.projection import principal_components, t_sne


class TestProjection:
    def test_components_are_where_the_variance_is(self):
        rng = np.random.default_rng(0)
        codes = rng.standard_normal((500, 3)) * [1, 5, 3] + 7
        points, shares = principal_components(codes)
        np.testing.assert_allclose(np.abs(np.corrcoef(points.T, codes[:, 1:].T)[[0, 1], [2, 3]]), 1, atol=0.01)
        np.testing.assert_allclose(shares, [25 / 35, 9 / 35], atol=0.05)
        np.testing.assert_allclose(principal_components(codes[:, :1])[1], [1, 0])

    def test_t_sne_keeps_clusters_together(self):
        rng = np.random.default_rng(0)
        codes = np.concatenate([rng.standard_normal((20, 5)), rng.standard_normal((20, 5)) + 30])
        points = t_sne(codes, seed=0)
        middles = points[:20].mean(0), points[20:].mean(0)
        nearer = np.linalg.norm(points - middles[0], axis=1) < np.linalg.norm(points - middles[1], axis=1)
        assert nearer.tolist() == [True] * 20 + [False] * 20
        assert np.isfinite(t_sne(np.zeros((6, 3)), seed=0)).all()

    def test_legend_names_frequent_labels_and_the_rest_together(self):
        labels = np.repeat(np.arange(20), np.arange(20) + 1)
        names = [f"label {number}" for number in range(20)]
        points = np.random.default_rng(0).standard_normal((len(labels), 2))
        figure = projection_figure(points, labels, names, ("x", "y"), "z", most=14)
        texts = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
        assert texts == ["other", *names[6:]]
        seen = {(tuple(c.get_facecolor()[0]), c.get_paths()[0].vertices.tobytes()) for c in figure.axes[0].collections}
        assert len(seen) == 15, "two labels look alike"

    def test_without_labels_there_is_no_legend(self):
        figure = projection_figure(np.eye(4, 2), np.full(4, -1), (), ("x", "y"), "z")
        assert figure.axes[0].get_legend() is None and len(figure.axes[0].collections) == 1


class TestCurves:
    def test_lines_are_the_figures_and_the_legend_names_the_runs(self):
        steps = list(range(100))
        fall = [50.0, *(4 - step / 100 for step in steps[1:])]
        a = Curves("a", {"bits_per_dim": (steps, fall)}, {"bits_per_dim": ([50, 99], [3.7, 3.1])})
        of_b = {"bits_per_dim": (steps, steps), "kl": (steps, steps), "dequantization": (steps, steps)}
        b = Curves("b", of_b, {})
        axes = curves_figure([a, b]).axes
        assert [text.get_text() for text in axes[0].get_legend().get_texts()] == [
            "a, training",
            "a, validation",
            "b, training",
        ]
        assert [list(line.get_ydata()) for line in axes[0].get_lines()] == [fall, [3.7, 3.1], steps]
        assert [len(panel.get_lines()) for panel in axes] == [3, 1, 1], "no run has a learning rate"
        assert axes[2].get_ylabel() == "log q(u|x), nats/image"
        # One value far above all others does not press them together.
        low, high = curves_figure([a]).axes[0].get_ylim()
        assert low < 3.01 and 4 < high < 6

    def test_what_is_of_images_with_noise_does_not_press_the_rest_together(self):
        steps = list(range(1, 101))
        lines = {"bits_per_dim": (steps, [7.0 if step <= 30 else 3 - step / 1000 for step in steps])}
        high = {noise: curves_figure([Curves("a", lines, {}, noise)]).axes[0].get_ylim()[1] for noise in (0, 30, 100)}
        assert high[30] < 3.1 and high[0] > 7 and high[100] > 7
