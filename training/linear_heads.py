"""Linear classifiers fitted to features at once, in float64: logistic regression, and least squares in closed form."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from scipy import stats
from torch.nn import functional as F


# Inverse strengths as scikit-learn's C, and factors of the squared weights; both for standardised features.
LOGISTIC_C = [10.0 ** (exponent / 2) for exponent in range(-10, 5)]
RIDGE_STRENGTHS = [2.0**exponent for exponent in range(-10, 21)]

_LEAST_DEVIATION = 1e-5  # is added to every standard deviation, so that a feature that never varies stays finite


@dataclass(frozen=True)
class LinearHead:
    """Logits that are linear in features.

    Attributes:
        weight: (K, D), float64.
        bias: (K,), float64.
    """

    weight: torch.Tensor
    bias: torch.Tensor

    def __call__(self, features: torch.Tensor) -> torch.Tensor:
        """(n, D) -> (n, K)."""
        return features @ self.weight.T + self.bias


@dataclass(frozen=True)
class Standardisation:
    """Brings features to mean 0 and standard deviation 1, and a head that was fitted to such ones back.

    Attributes:
        mean: (D,), float64.
        deviation: (D,), float64.
    """

    mean: torch.Tensor
    deviation: torch.Tensor

    @classmethod
    def of(cls, features: torch.Tensor) -> "Standardisation":
        """That of the given features, (n, D)."""
        features = features.double()
        return cls(features.mean(0), features.std(0, correction=0) + _LEAST_DEVIATION)

    def __call__(self, features: torch.Tensor) -> torch.Tensor:
        return (features.double() - self.mean) / self.deviation

    def folded_into(self, head: LinearHead) -> LinearHead:
        """The head that makes of the features as they are what `head` makes of standardised ones."""
        weight = head.weight / self.deviation
        return LinearHead(weight, head.bias - weight @ self.mean)


def loss_of(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The mean over images of the cross-entropy with classes (n,), in nats.

    With multi-hot labels (n, K) it is the binary cross-entropy, summed over classes.
    """
    if labels.ndim == 2:
        return F.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype), reduction="sum") / len(labels)
    return F.cross_entropy(logits, labels)


def logistic_regression(
    features: torch.Tensor, labels: torch.Tensor, classes: int, c: float, start: LinearHead | None = None
) -> LinearHead:
    """The minimum of `c` times the summed loss plus half the sum of squared weights, as scikit-learn's, by L-BFGS.

    Args:
        features: (n, D), float64.
        labels: class indices (n,), or multi-hot (n, K), whose classes are told from the rest one by one.
        classes: K.
        c: the inverse strength of the penalty, which the bias is free of.
        start: where to begin, by default at zero.
    """
    weight = torch.zeros(classes, features.shape[1], dtype=torch.float64) if start is None else start.weight.clone()
    bias = torch.zeros(classes, dtype=torch.float64) if start is None else start.bias.clone()
    parameters = [weight.requires_grad_(), bias.requires_grad_()]
    optimizer = torch.optim.LBFGS(
        parameters, max_iter=1000, tolerance_grad=1e-5, tolerance_change=1e-12, line_search_fn="strong_wolfe"
    )

    def objective() -> torch.Tensor:
        optimizer.zero_grad()
        value = loss_of(F.linear(features, weight, bias), labels) + weight.square().sum() / (2 * c * len(features))
        value.backward()
        return value

    with torch.enable_grad():
        optimizer.step(objective)
    return LinearHead(weight.detach(), bias.detach())


def best_logistic_regression(
    training: tuple[torch.Tensor, torch.Tensor], validation: tuple[torch.Tensor, torch.Tensor], classes: int
) -> tuple[LinearHead, float]:
    """Logistic regression on standardised features, with the C of `LOGISTIC_C` whose loss on `validation` is lowest.

    They are tried from the strongest penalty on, each from where the last ended, until one does worse than the last.

    Args:
        training: features (n, D) and labels, as `logistic_regression` takes them.
        validation: others.
        classes: K.

    Returns:
        the head for features as they are, and its C.
    """
    standardisation = Standardisation.of(training[0])
    features, unseen = standardisation(training[0]), standardisation(validation[0])
    head = logistic_regression(features, training[1], classes, LOGISTIC_C[0])
    best, loss = (head, LOGISTIC_C[0]), loss_of(head(unseen), validation[1])
    for c in LOGISTIC_C[1:]:
        head = logistic_regression(features, training[1], classes, c, head)
        previous, loss = loss, loss_of(head(unseen), validation[1])
        if loss >= previous:
            break
        best = head, c
    return standardisation.folded_into(best[0]), best[1]


def regularised_least_squares(features: torch.Tensor, targets: torch.Tensor) -> tuple[LinearHead, float]:
    """The exact solution of ridge regression of standardised features (Section 4.1's "regularized least-squares").

    The strength is that of `RIDGE_STRENGTHS` under which every example is predicted best by all the others, by the
    closed form of leave-one-out ("PRESS"): residual / (1 - leverage). The bias is not penalised.

    Args:
        features: (n, D).
        targets: (n, K), -1 and 1 for classification.

    Returns:
        the head for features as they are, and its strength: the factor of the sum of squared weights.
    """
    standardisation = Standardisation.of(features)
    targets = targets.double()
    bias = targets.mean(0)
    left, singular, right = torch.linalg.svd(standardisation(features), full_matrices=False)
    projected = left.T @ (targets - bias)  # (r, K)

    def left_out_error(strength: float) -> float:
        shrinkage = singular**2 / (singular**2 + strength)
        leverage = 1 / len(features) + left**2 @ shrinkage  # (n,)
        residual = targets - bias - left @ (shrinkage[:, None] * projected)
        return float((residual / (1 - leverage)[:, None]).square().mean())

    strength = min(RIDGE_STRENGTHS, key=left_out_error)
    shrunk = singular / (singular**2 + strength)
    weight = projected.T @ (shrunk[:, None] * right)
    return standardisation.folded_into(LinearHead(weight, bias)), strength


def t_margin(values: Sequence[float]) -> float:
    """Half the width of the 95 % interval of the mean of two or more values, by Student's t."""
    spread = torch.tensor(values, dtype=torch.float64).std().item()
    return float(stats.t.ppf(0.975, len(values) - 1)) * spread / len(values) ** 0.5
