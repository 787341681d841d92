"""Small networks and inputs that tests of explainers share."""

import torch
from torch import nn
from torch.nn import functional

CLASSES = [2, 0, 1]


def images(count=3, channels=2, size=8):
    return torch.randn(count, channels, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def plain():
    """Convolutions, pooling and a hidden layer."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 5, 3), nn.ReLU(), nn.Flatten(),
        nn.Linear(20, 6), nn.ReLU(), nn.Linear(6, 3),
    ).double()  # fmt: skip


def pooled(padding=1):
    """Global average pooling and one linear layer behind the last maps, which are as large as the input."""
    torch.manual_seed(2)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=padding), nn.ReLU(), nn.Conv2d(4, 5, 3, padding=padding), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 3),
    ).double()  # fmt: skip


class Residual(nn.Module):
    """Normalisation, a shortcut, functional and in-place ReLUs, the scores in a dictionary, an input that changes."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(4)
        self.first, self.second = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.norm.running_mean.uniform_(-0.3, 0.3)
        self.norm.running_var.uniform_(0.5, 2)
        self.ends = nn.Identity()  # for Captum, which takes modules
        self.head = nn.Linear(4, 3)
        self.double().eval()

    def forward(self, x):
        x.mul_(0.5)
        early = torch.relu_(self.first(x))
        late = self.ends(functional.relu(self.norm(self.second(early)) + early))
        return {"scores": self.head(late.mean((2, 3)))}


class Detached(nn.Module):
    """A network whose parts are to be seen, but from whose answers no gradient leads back."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x).detach()


class Dense(nn.Module):
    """The last maps are a concatenation, normalised."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(5)
        self.first, self.second = nn.Conv2d(2, 4, 3), nn.Conv2d(4, 3, 3, padding=1)
        self.norm, self.ends, self.head = nn.BatchNorm2d(7), nn.ReLU(), nn.Linear(7, 3)
        self.double().eval()

    def forward(self, x):
        early = functional.relu(self.first(x))
        joined = torch.cat([early, self.second(early)], 1)
        return self.head(functional.adaptive_avg_pool2d(self.ends(self.norm(joined)), 1).flatten(1))


def scores_of(model, x):
    output = model(x.clone())
    return output["scores"] if isinstance(output, dict) else output


def weighed():
    """No pooling: the last layer weighs each place by itself."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)).double()
