"""Two metrics of accuracy: of linear classifiers on z, v and pixels, and of a model with labels, by Bayes' rule."""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from tfdecouple.data.drawn_images import draw_image_indices, encode_drawn_images, read_drawn_images
from tfdecouple.errors import DataError
from tfdecouple.metrics.metric import Estimate, Evaluation, Metric, Option, Result, format_table
from tfdecouple.storage.files import Facts
from tfdecouple.system.progress import Counter

if TYPE_CHECKING:
    from tfdecouple.data.sources import Source
    from tfdecouple.model import DecoupledModel

CLASSIFIERS = ("linear SVM", "logistic regression")
# Candidate values of C, the inverse strength of the regularisation.
STRENGTHS = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)
# One in five training images is held out to choose C.
HELD_OUT = 5
MAX_ITERATIONS = 1000
# By default classifiers get at most 10,000 images, and at most 2**26 colour values in all, because both lengthen a fit.
IMAGES, VALUES = 10_000, 2**26
# Smallest number of training images of the classifiers.
LEAST = 10


class LinearProbe(Metric):
    """The metric of the test accuracy of linear classifiers on pixels, z (the posterior mean) and v (paper Table 4).

    For a fair comparison with z, pixels and v are also reduced to d_z dimensions by PCA. All features are standardised.
    Scalers, PCA and classifiers are fitted to training images alone, without augmentation. The SVM is scikit-learn's
    `LinearSVC`; the paper's code uses `SVC(kernel="linear", C=1)`, whose time grows with the square of the number of
    images.
    """

    name = "probe"
    help = "also the test accuracy of linear classifiers of z, v and pixels; needs labels"
    _IMAGES = "training images of --probe; 0 for the number in --images, or at most 10000, fewer if images are large"
    added_options = {"probe_images": Option(int, 0, _IMAGES)}
    split = "test"
    needs_posterior = True

    def compute(self, evaluation: Evaluation) -> Result:
        options, source, model = self.options, evaluation.source, evaluation.opened.model
        default = min(IMAGES, VALUES // math.prod(model.config.image_shape))
        train_images = max(options.images, LEAST) if options.images else default
        reading = {"seed": options.seed, "batch_size": evaluation.batch_size}
        train, labels = read_labelled_images(model, source, "train", options.probe_images or train_images, **reading)
        test, test_labels = read_labelled_images(model, source, "test", options.images or default, **reading)
        if len(labels) < LEAST:
            raise DataError(f"the number of training images is {len(labels)}; a probe needs at least {LEAST}")
        fitted_labels = labels[: -(len(labels) // HELD_OUT)]
        if len(np.unique(fitted_labels)) < 2:
            raise DataError(
                f"the {len(fitted_labels)} training images of {source.title} to fit on are all of one class; a probe "
                "needs two or more, so take more images or other data"
            )
        (z, v), (test_z, test_v) = (encode_drawn_images(model, group, evaluation.batch_size) for group in (train, test))
        codes = {} if z is None or test_z is None else {"z": (z, test_z)}
        rows = []
        for title, both in {"pixels": (train, test), **codes, "v": (v, test_v)}.items():
            groups = {title: standardize_features(*both)}
            if codes and title != "z":
                groups[f"{title}, PCA"] = reduce_features(*groups[title], model.config.latent_dim, options.seed)
            for name, (features, test_features) in groups.items():
                classifiers = {}
                for kind in CLASSIFIERS:
                    with Counter(f"{name}, {kind}", len(STRENGTHS) + 1, unit="fits") as counter:
                        classifier, choice = fit_classifier(kind, features, labels, counter)
                    accuracy = Estimate.from_values(classifier.predict(test_features) == test_labels)
                    result = {"accuracy": accuracy.mean, "standard_error": accuracy.standard_error}
                    classifiers[kind] = choice | result
                    # Progress goes to standard error, so that standard output has only the results.
                    shown = f"{name} ({features.shape[1]:,}), {kind}: {accuracy.to_percent(2)}"
                    print(shown, file=sys.stderr, flush=True)
                rows.append({"features": name, "dimensions": features.shape[1], "classifiers": classifiers})
        report = {
            "results": rows,
            "chance": float(np.unique(test_labels, return_counts=True)[1].max() / len(test_labels)),
            "train_images": len(labels),
            "test_images": len(test_labels),
            "held_out_images": len(labels) // HELD_OUT,
            "classes": len(np.unique(labels)),
            "seed": options.seed,
        }
        return Result(report, _format_linear_classifiers(report))


def _format_linear_classifiers(report: Facts) -> list[str]:
    lines = [
        f"Test accuracy of linear classifiers, {report['classes']} classes (paper Table 4): "
        f"{report['train_images']:,} training, {report['test_images']:,} test images."
    ]
    rows = [["features", "dimensions", *CLASSIFIERS]]
    for row in report["results"]:
        results = [row["classifiers"][kind] for kind in CLASSIFIERS]
        accuracies = [Estimate(result["accuracy"], result["standard_error"]).to_percent(2) for result in results]
        rows.append([row["features"], f"{row['dimensions']:,}", *accuracies])
    lines += format_table(rows, indent=0)
    lines.append(f"The largest class has {100 * report['chance']:.2f} % of the test images.")
    lines.append(
        f"±: standard error. C was chosen on {report['held_out_images']:,} of the training images; z is the posterior "
        "mean."
    )
    if not all(result["converged"] for row in report["results"] for result in row["classifiers"].values()):
        lines.append("Some fits reached the largest number of iterations: see `converged` in the JSON file.")
    return lines


def make_classifier(kind: str) -> Any:
    """Returns a linear classifier of scikit-learn that is not fitted yet; `kind` is one of `CLASSIFIERS`."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.svm import LinearSVC

    if kind == "linear SVM":
        return LinearSVC(dual=False, max_iter=MAX_ITERATIONS)
    return LogisticRegression(max_iter=MAX_ITERATIONS, warm_start=True)


def standardize_features(train: np.ndarray, test: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns arrays `[n, ...]` as features, float32 `[n, k]`, scaled to mean 0 and deviation 1 in `train`.

    A constant feature of `train` becomes 0. Arrays of float32 are changed in place.
    """
    from sklearn.preprocessing import StandardScaler

    flat, test_flat = (array.reshape(len(array), -1).astype(np.float32, copy=False) for array in (train, test))
    scaler = StandardScaler(copy=False).fit(flat)
    return scaler.transform(flat), scaler.transform(test_flat)


def reduce_features(train: np.ndarray, test: np.ndarray, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Reduces standardised features, float32 `[n, k]`, to at most `count` standardised principal components of `train`.

    The PCA has at most n - 1 components, because a further one would be rounding error, which standardisation would
    enlarge. For more than 4,096 features the PCA is randomised with `seed`.
    """
    from sklearn.decomposition import PCA
    from threadpoolctl import threadpool_limits

    # The covariance matrix of more features takes longer than a randomised PCA.
    solver = "covariance_eigh" if train.shape[1] <= 4096 else "randomized"
    pca = PCA(min(count, len(train) - 1, train.shape[1]), svd_solver=solver, random_state=seed)
    # On cores that other programs use, too, one thread is fastest, because several threads wait for each other.
    with threadpool_limits(1):
        pca.fit(train)
    return standardize_features(pca.transform(train), pca.transform(test))


def fit_classifier(
    kind: str, features: np.ndarray, labels: np.ndarray, on_fit: Callable[[int], None] = lambda fits: None
) -> tuple[Any, Facts]:
    """Chooses C on the last fifth of the training images; returns a classifier with this C, fitted to all the images.

    Also returns a dict: `C`, the inverse regularisation; `held_out_accuracy`, on the last fifth, of a classifier with
    this C that was fitted without it; `tried`, pairs [C, this accuracy]; and whether the final fit `converged`.

    The search stops when the accuracy on the last fifth is more than its standard error below the best one, because a
    larger C takes longer. `kind` is one of `CLASSIFIERS`. `features`, float32 `[n, features]`, are standardised, of at
    least five images in random order. The first four fifths of `labels`, int `[n]`, must have two different ones. The
    callback `on_fit` receives the count of fits so far.
    """
    from sklearn.exceptions import ConvergenceWarning
    from threadpoolctl import threadpool_limits

    held_out = len(labels) // HELD_OUT
    classifier, tried, best = make_classifier(kind), [], -1.0
    # With one thread, results do not depend on the number of cores. More threads are at most twice as fast here, and 15
    # times as slow on cores with other work, because threads wait for each other.
    with threadpool_limits(1), warnings.catch_warnings():
        # The entry `converged` of the result says the same as this warning.
        warnings.simplefilter("ignore", ConvergenceWarning)
        for strength in STRENGTHS:
            classifier.set_params(C=strength).fit(features[:-held_out], labels[:-held_out])
            accuracy = float(np.mean(classifier.predict(features[-held_out:]) == labels[-held_out:]))
            tried.append([strength, accuracy])
            on_fit(len(tried))
            best = max(best, accuracy)
            if accuracy < best - math.sqrt(best * (1 - best) / held_out):
                break
        strength = next(strength for strength, accuracy in tried if accuracy == best)
        # A new classifier is fitted, because a warm start from the last value of C would be far from the solution.
        classifier = make_classifier(kind).set_params(C=strength).fit(features, labels)
    converged = bool(np.max(classifier.n_iter_) < MAX_ITERATIONS)
    return classifier, {"C": strength, "held_out_accuracy": best, "tried": tried, "converged": converged}


def read_labelled_images(
    model: DecoupledModel, source: Source, split: str, count: int, *, seed: int, batch_size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Returns at most `count` random images, uint8 `[n, ...]`, and labels, int32 `[n]`; DataError without a label."""
    from tfdecouple.data.labels import check_labels

    images, labels = read_drawn_images(model, source, split, draw_image_indices(source, split, count, seed), batch_size)
    if (check_labels(source, labels) < 0).any():
        raise DataError(f"{source.title} has {split} images without a label; use data with labels, such as sub-folders")
    return images, labels


class Classification(Metric):
    """The metric of the accuracy with which a model with labels classifies images, by Bayes' rule from p(x|y)."""

    name = "classify"
    help = "also how often the model classifies an image right, by Bayes' rule; the model must have labels"
    needs_labels = True
    needs_plots = True

    def compute(self, evaluation: Evaluation) -> Result:
        from tfdecouple.visualization.plots import plot_confusion, render_figure

        opened = evaluation.opened
        with Counter("classifying", evaluation.count) as counter:
            report = classify_images(opened.model, evaluation.make_image_batches(), counter)
        accuracy = Estimate(report["accuracy"], report["standard_error"])
        lines = [
            f"{accuracy.to_percent(1)} of {report['images']:,} images classified right by Bayes' rule; the "
            f"most frequent label has {100 * report['chance']:.1f} %",
            f"    {report['log_probability']:.3f} nats: mean log p(y|x) of the right label",
        ]
        return Result(report, lines, render_figure(plot_confusion(report["confusion"], opened.label_names)))


def classify_images(
    model: DecoupledModel,
    batches: Iterable[Mapping[str, np.ndarray]],
    on_batch: Callable[[int], None] = lambda done: None,
) -> Facts:
    """Classifies each image x as the label y with the highest p(y|x); returns a dict of the accuracy and more metrics.

    `chance` is the share of the most frequent label, `log_probability` the mean of log p(y|x) of the true label y in
    nats. `confusion` has `counts`, a row for each true and a column for each predicted label. `batches` are dicts from
    `make_evaluation_batches`, and `on_batch` is a callback that receives the count of images classified so far.
    DataError is raised if no image has a label.
    """
    import tensorflow as tf
    from sklearn.metrics import confusion_matrix

    from tfdecouple.numerics.tf32 import full_float32

    classify = tf.function(model.classify, autograph=False, reduce_retracing=True)
    log_probabilities, labels, done = [], [], 0
    for batch in batches:
        image, label, weight = (np.asarray(batch[name]) for name in ("image", "label", "weight"))
        with full_float32():
            log_probability = classify(tf.constant(image)).numpy()
        labelled = (weight > 0) & (label >= 0)
        log_probabilities.append(log_probability[labelled])
        labels.append(label[labelled])
        on_batch(done := done + int((weight > 0).sum()))
    log_p, true_labels = np.concatenate(log_probabilities).astype(np.float64), np.concatenate(labels)
    if not len(true_labels):
        raise DataError("no image has a label; use images with labels, such as in sub-folders")
    predicted = log_p.argmax(1)
    accuracy = Estimate.from_values(predicted == true_labels)
    shown = np.union1d(true_labels, predicted)
    counts = confusion_matrix(true_labels, predicted, labels=shown).tolist()
    return {
        "images": len(true_labels),
        "accuracy": accuracy.mean,
        "standard_error": accuracy.standard_error,
        "chance": float(np.bincount(true_labels).max() / len(true_labels)),
        "log_probability": float(log_p[np.arange(len(true_labels)), true_labels].mean()),
        "confusion": {"labels": shown.tolist(), "counts": counts, "accuracy": accuracy.mean},
    }
