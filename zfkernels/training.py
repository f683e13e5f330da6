"""The paper's training recipe (Zeiler & Fergus, section 3), at the size a demonstration needs.

Stochastic gradient descent with momentum on mirrored crops less their mean image; after each step every convolution
filter whose root mean square exceeds 0.1 is scaled back to 0.1; the learning rate falls in steps. (Dropout is the
network's.)
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from .zfnet import clamp_filters_


@dataclass(frozen=True)
class Recipe:
    epochs: int
    batch_size: int = 32
    learning_rate: float = 0.006
    momentum: float = 0.9
    weight_decay: float = 0.04  # many times Krizhevsky et al.'s 5e-4: so few steps would leave filters of random noise
    filter_rms: float = 0.1
    steps: tuple[float, ...] = (0.5, 0.8)  # the rate falls at these fractions of the epochs
    fall: float = 0.2  # to this fraction of what it was

    def rate(self, epoch: int) -> float:
        return self.learning_rate * self.fall ** sum(epoch >= step * self.epochs for step in self.steps)


@dataclass(frozen=True)
class Epoch:
    loss: float  # mean cross-entropy of the training crops, nats, with dropout on
    accuracy: float  # on the held-out crops, 0..1
    learning_rate: float
    images_per_second: float  # training alone


def normalise(images: torch.Tensor, mean: torch.Tensor, scale: float) -> torch.Tensor:
    """(images - mean) / scale in float32: uint8 (N, 3, H, W) images as the network takes them."""
    return (images.float() - mean) / scale


def train(
    model: nn.Module,
    training: tuple[torch.Tensor, torch.Tensor],
    held_out: tuple[torch.Tensor, torch.Tensor],
    recipe: Recipe,
    *,
    mean: torch.Tensor,
    scale: float,
    generator: torch.Generator,
    quiet: bool = False,
) -> list[Epoch]:
    """Train `model` in place and return what each epoch measured.

    Args:
        training: (images, labels): uint8 (N, 3, H, W) and int64 (N,); an epoch takes them in a new random order.
        held_out: likewise; only evaluated.
        mean, scale: see `normalise`.
        generator: of the order and the mirroring. Dropout uses torch's global generator.
        quiet: no progress bar.
    """
    from tqdm import tqdm

    optimiser = torch.optim.SGD(
        model.parameters(), lr=recipe.learning_rate, momentum=recipe.momentum, weight_decay=recipe.weight_decay
    )
    history: list[Epoch] = []
    images, labels = training
    with tqdm(desc="training", total=len(labels) * recipe.epochs, unit=" images", disable=quiet) as bar:
        for epoch in range(recipe.epochs):
            optimiser.param_groups[0]["lr"] = recipe.rate(epoch)
            model.train()
            start, total_loss = time.perf_counter(), 0.0
            for pick in torch.randperm(len(labels), generator=generator).split(recipe.batch_size):
                batch = normalise(images[pick], mean, scale)
                mirrored = torch.rand(len(batch), generator=generator) < 0.5
                batch = torch.where(mirrored[:, None, None, None], batch.flip(-1), batch)
                loss = F.cross_entropy(model(batch), labels[pick])
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                clamp_filters_(model, recipe.filter_rms)
                total_loss += loss.item() * len(batch)
                bar.set_postfix_str(f"epoch {epoch + 1}/{recipe.epochs}, loss {loss.item():.3f}", refresh=False)
                bar.update(len(batch))
            seconds = time.perf_counter() - start
            correct = predict(model, held_out[0], mean=mean, scale=scale).argmax(1) == held_out[1]
            history.append(
                Epoch(
                    loss=total_loss / len(labels),
                    accuracy=correct.float().mean().item(),
                    learning_rate=recipe.rate(epoch),
                    images_per_second=len(labels) / seconds,
                )
            )
    return history


@torch.no_grad()
def predict(model: nn.Module, images: torch.Tensor, *, mean: torch.Tensor, scale: float) -> torch.Tensor:
    """Class probabilities (N, classes) of uint8 images, in evaluation mode."""
    model.eval()
    return torch.cat([model(normalise(batch, mean, scale)).softmax(1) for batch in images.split(64)])
