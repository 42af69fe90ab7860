"""Perceptron and multi-layer perceptron: every output looks at every pixel.

Rosenblatt 1958: one layer of weights, a weighted sum per class. It separates what a hyperplane
separates and nothing else. His output is a step, which gradient descent cannot train; here the
sums go to a softmax instead, which makes it multinomial logistic regression.
Rumelhart, Hinton & Williams 1986: hidden layers, trained by back-propagating the error, learn
features that no single layer has.

Often wrong: without a non-linearity between them, two layers are one; with equal initial weights,
the hidden units stay equal for ever (hence the random start). Departure from the 1986 paper: ReLU
in place of the sigmoid.
"""

from itertools import pairwise

from torch import Tensor, nn

from vidi.errors import InputError

_ROSENBLATT = "Rosenblatt 1958, The perceptron (Psychological Review 65)"
_RUMELHART = "Rumelhart et al. 1986, Learning representations by back-propagating errors"


class MLP(nn.Module):
    """Flattened pixels, ``hidden`` layers with ReLU (and dropout), one linear layer of logits.

    Input [N, 3, image_size, image_size], output [N, num_classes]. With no hidden layer it is the
    perceptron.
    """

    def __init__(
        self,
        num_classes: int,
        image_size: int,
        hidden: tuple[int, ...],
        dropout: float,
        source: str,
    ) -> None:
        super().__init__()
        self.source = source
        self.image_size = image_size
        widths = (3 * image_size * image_size, *hidden)
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise(widths):
            layers += [nn.Linear(inputs, outputs), nn.ReLU(inplace=True)]
            layers += [nn.Dropout(dropout)] if dropout else []
        self.layers = nn.Sequential(*layers, nn.Linear(widths[-1], num_classes))
        for layer in layers:
            if isinstance(layer, nn.Linear):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[2:] != (self.image_size, self.image_size):
            raise InputError(
                f"This network was built for images of {self.image_size} × {self.image_size} "
                f"pixels and was given {x.shape[3]} × {x.shape[2]}; a perceptron has a weight for "
                "every pixel, so give it the size it was built for."
            )
        logits: Tensor = self.layers(x.flatten(1))
        return logits


def perceptron(num_classes: int = 10, image_size: int = 28) -> MLP:
    """One linear layer on the pixels (Rosenblatt 1958), as softmax regression."""
    return MLP(num_classes, image_size, hidden=(), dropout=0.0, source=_ROSENBLATT)


def mlp(
    num_classes: int = 10,
    image_size: int = 28,
    *,
    hidden: tuple[int, ...] = (512, 512),
    dropout: float | None = None,
) -> MLP:
    """Multi-layer perceptron (Rumelhart et al. 1986) with ReLU.

    ``hidden`` gives the width of each hidden layer, ``dropout`` the probability after each of
    them (the paper has none).
    """
    return MLP(num_classes, image_size, hidden, dropout or 0.0, source=_RUMELHART)
