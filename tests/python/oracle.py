"""The formulas of contract §7 in numpy, float32 as the contract says."""

import numpy as np

SMALLER_IS_BETTER = {"L2", "HAMMING", "JACCARD"}


def rrf(lists, k=60.0):
    """`lists`: one list of (key, score) for each leg, best first."""
    fused = {}
    for hits in lists:
        for rank, (key, _) in enumerate(hits, 1):
            fused[key] = np.float32(fused.get(key, 0)) + np.float32(1) / np.float32(k + rank)
    return order(fused)


def weighted(lists, weights, metrics, norm_score=True):
    all_smaller = all(metric in SMALLER_IS_BETTER for metric in metrics)
    fused = {}
    for hits, weight, metric in zip(lists, weights, metrics, strict=True):
        for key, score in hits:
            value = normal(metric, np.float32(score), norm_score, all_smaller)
            fused[key] = np.float32(fused.get(key, 0)) + np.float32(weight) * value
    return order(fused, ascending=all_smaller and not norm_score)


def normal(metric, score, norm_score, all_smaller):
    pi = np.float32(np.pi)
    if metric in SMALLER_IS_BETTER:
        keep = not norm_score and all_smaller
        return score if keep else np.float32(1) - 2 * np.arctan(score) / pi
    if not norm_score:
        return score
    return {
        "COSINE": lambda: (1 + score) / np.float32(2),
        "IP": lambda: np.float32(0.5) + np.arctan(score) / pi,
        "BM25": lambda: 2 * np.arctan(score) / pi,
    }[metric]()


def order(fused, ascending=False):
    """Best first; ties by key."""
    sign = 1 if ascending else -1
    return sorted(fused.items(), key=lambda item: (sign * item[1], item[0]))


def decay(function, value, origin, scale, offset=0.0, decay=0.5):
    a = max(0.0, abs(value - origin) - offset)
    if function == "gauss":
        return np.exp(a * a * np.log(decay) / scale**2)
    if function == "exp":
        return np.exp(a * np.log(decay) / scale)
    return max(decay, 1 - (1 - decay) * a / scale)
