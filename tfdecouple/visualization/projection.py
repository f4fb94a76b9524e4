"""Codes projected to the plane."""

from __future__ import annotations

import numpy as np


def principal_components(codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Projects codes to their first two principal components.

    >>> points, shares = principal_components(np.array([[0.0, 0.0, 5.0], [3.0, 0.0, 5.0], [0.0, 1.0, 5.0]]))
    >>> points.shape, bool(np.isclose(shares.sum(), 1))
    ((3, 2), True)

    Args:
        codes: `[n, d]`, n at least 2.

    Returns:
        The points, float64 `[n, 2]`, and the shares of the variance that the two components explain, `[2]`. Where d is
        1, the second is 0. A component's largest weight is positive, so that the picture does not depend on chance.
    """
    centred = np.asarray(codes, np.float64) - np.mean(codes, 0, dtype=np.float64)
    _, lengths, directions = np.linalg.svd(centred, full_matrices=False)
    largest = np.argmax(np.abs(directions), 1)
    directions = directions * np.sign(directions[np.arange(len(directions)), largest])[:, None]
    points, shares = np.zeros((len(centred), 2)), np.zeros(2)
    count = min(2, len(directions))
    points[:, :count] = centred @ directions[:count].T
    total = np.sum(lengths**2)
    if total > 0:
        shares[:count] = lengths[:count] ** 2 / total
    return points, shares


def t_sne(codes: np.ndarray, seed: int) -> np.ndarray:
    """Projects codes by t-SNE, which keeps neighbours together and says nothing of larger distances.

    Args:
        codes: `[n, d]`, n at least 4.
        seed: of its random part.

    Returns:
        The points, `[n, 2]`.
    """
    import threadpoolctl
    from sklearn.manifold import TSNE

    # Its usual 30 neighbours are too many for a few points.
    perplexity = min(30.0, (len(codes) - 1) / 3)
    start = principal_components(codes)[0]
    spread = np.std(start[:, 0])
    start = (start / spread * 1e-4 if spread > 0 else start).astype(np.float32)
    # Its threads wait for each other in a busy loop: on cores that have other work too, one is several times faster.
    with threadpoolctl.threadpool_limits(1):
        return TSNE(2, perplexity=perplexity, init=start, random_state=seed).fit_transform(
            np.asarray(codes, np.float32)
        )
