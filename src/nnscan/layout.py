"""Where a study's files lie, and which of them a study asks for; the Snakefile is written in these terms.

Nothing here imports torch: every job of a cluster parses the Snakefile again.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from nnscan.artifacts import file_digest
from nnscan.configuration import ModelConfig, Study

CUTTABLE = {"simple_cnn": 3, "vgg11": 8, "vgg16": 13}
"""Models of the zoo that can be cut after a convolution, with their number of convolutions."""


class Figure(NamedTuple):
    """A figure of a data set and model.

    Attributes:
        rule: The rule that draws it.
        title: What it shows.
        caption: How to read it.
    """

    rule: str
    title: str
    caption: str


FIGURES = {
    "class_averages": Figure(
        "draw_figures",
        "Class-average images",
        "Each column is a class, each row a way to average its training images: all of them, stretched to the "
        "class's range (simple); those of highest and of lowest confidence; the simple one after gradient "
        "ascent on the class's score. The number is the network's confidence that the average belongs to its "
        "class. First seed.",
    ),
    "learning_images": Figure(
        "draw_figures",
        "Learning images of the strongest and weakest neurons",
        "Which input pixels reach a neuron, and with what weight: red raises its value, blue lowers it. Early "
        "layers see a few pixels, late ones the whole object. The input stands above each learning image. "
        "First seed.",
    ),
    "quantity": Figure(
        "draw_figures",
        "Feature quantity by layer",
        "FQ weighs how well a neuron's learning image matches the foreground (SSIM) by how much of it the "
        "neuron sees. SSIM alone is high for nearly blank images; FQ is not.",
    ),
    "similarity": Figure(
        "draw_figures",
        "Similarity by layer",
        "Cosine between a class average (method 1), or the guided-backpropagation image of its class score "
        "(method 2), and each neuron's guided-backpropagation image: mean and standard deviation over the "
        "filters of a layer. Thin lines are classes.",
    ),
    "aipc": Figure(
        "draw_figures",
        "Accuracy when filters are masked step by step",
        "Filters are masked from the highest value of a property down. A curve that falls faster than the "
        "random one means that the property finds filters on which the accuracy rests.",
    ),
    "training": Figure(
        "draw_figures",
        "Training curves",
        "Left: the regular training, whose lowest validation loss is the well-trained model. Right: the long "
        "training without regularisation that ends in the overfitted model.",
    ),
    "anomaly": Figure(
        "draw_figures",
        "Anomaly filters and their outlier samples",
        "Left: how many filters are anomalies. Right: each point is an image of the training set as one "
        "filter sees it; a few points far away from a dense cloud make an anomaly filter. Of the last "
        "checkpoint and first seed: anomaly filters first, then filters with outliers, by CH index.",
    ),
}
"""The figures of a data set and model, by file name, in the order of the report."""

TABLES = (
    "slides_4-2", "slides_4-3", "slides_5-1", "slides_5-2", "slides_6-2", "slides_6-3", "slides_6-5",
    "thesis_4-1", "thesis_5-1", "thesis_5-1_layers",
)  # fmt: skip
"""The published tables that are rendered."""

CHECKPOINTS = ("well_trained", "overfitted")

FORMATS = ("csv", "md", "tex", "html")

EXPERIMENTS = ("diversity_masking", "aipc", "anomaly_masking", "gradients", "pruning")


class RunKey(NamedTuple):
    """A run: one model trained on one data set from one seed."""

    dataset: str
    model: str
    seed: int


@dataclass(frozen=True)
class Layout:
    """The files of a study.

    Attributes:
        study: The configuration.
    """

    study: Study

    @property
    def root(self) -> str:
        """The study's folder."""
        return f"results/{self.study.study}"

    def dataset(self, name: str) -> str:
        """Return the pattern of a data set's file."""
        return f"{self.root}/{{dataset}}/{name}"

    def run(self, name: str) -> str:
        """Return the pattern of a run's file."""
        return f"{self.root}/{{dataset}}/{{model}}/seed{{seed}}/{name}"

    def log(self, rule: str, *wildcards: str) -> str:
        """Return the pattern of a rule's log."""
        return f"{self.root}/logs/{rule}/{self._parts(wildcards)}.log"

    def benchmark(self, rule: str, *wildcards: str) -> str:
        """Return the pattern of a rule's benchmark."""
        return f"{self.root}/benchmarks/{rule}/{self._parts(wildcards)}.tsv"

    @staticmethod
    def _parts(wildcards: tuple[str, ...]) -> str:
        return "_".join(f"{{{name}}}" for name in wildcards) or "all"

    def runs(self) -> list[RunKey]:
        """Return all runs of the study."""
        return [RunKey(*network, seed) for network in self.networks() for seed in self.seeds(network[1])]

    def networks(self) -> list[tuple[str, str]]:
        """Return the data set and model of each figure of the study."""
        return [
            (dataset.name, model.name)
            for dataset in self.study.datasets
            for model in self.study.models
            if model.datasets is None or dataset.name in model.datasets
        ]

    def seeds(self, model: str) -> list[int]:
        """Return the seeds of a model, in the order of the study."""
        own = self.study.model(model).seeds
        return [seed for seed in self.study.seeds if own is None or seed in own]

    def trained(self) -> list[str]:
        """Return the models that the study trains."""
        return [model.name for model in self.study.models if model.weights is None]

    def adopted(self) -> list[str]:
        """Return the models that come with a checkpoint of their own."""
        return [model.name for model in self.study.models if model.weights is not None]

    def overfitted(self) -> list[str]:
        """Return the models that have an overfitted checkpoint beside the well-trained one."""
        return [model for model in self.trained() if self.study.training_of(model).overfitting_epochs]

    def never_overfitted(self) -> list[str]:
        """Return the models that have a well-trained checkpoint only."""
        return [model.name for model in self.study.models if model.name not in self.overfitted()]

    def checkpoints(self, model: str) -> list[str]:
        """Return the checkpoints of a model that are searched for anomaly filters."""
        return list(CHECKPOINTS) if model in self.overfitted() else ["well_trained"]

    def cuttable(self, model: str) -> bool:
        """Return whether the layers of a model can be removed for the layer experiment."""
        entry = self.study.model(model)
        return (
            self.study.experiments.layer_removal
            and entry.weights is None
            and entry.source in CUTTABLE
            and "convolutions" not in entry.options
            and isinstance(self.study.scan.layers, str)  # of chosen layers there is no curve over all convolutions
        )

    def model_parameters(self, model: str) -> dict[str, Any]:
        """Return what a script needs to build a model, and digests of the files it comes from."""
        entry = self.study.model(model)
        return {"name": entry.name, "source": entry.source, "options": entry.options, "digest": _source_file(entry)}

    def shards(self) -> list[int]:
        """Return the numbers of the scan's shards."""
        return list(range(min(self.study.scan.shards, self.study.scan.samples)))

    def run_names(self, key: RunKey) -> list[str]:
        """Return what tables and figures need of a run, relative to its folder; other files there are leftovers."""
        names = ["training/history.csv", "training/results.csv", "averages/averages.h5"]
        names += [
            f"metrics/well_trained/{name}.parquet" for name in ("quantity", "diversity", "properties", "similarity")
        ]
        checkpoints = self.checkpoints(key.model)
        names += [
            f"metrics/{checkpoint}/{name}.parquet" for checkpoint in checkpoints for name in ("anomaly", "outliers")
        ]
        names += [f"experiments/{name}.parquet" for name in EXPERIMENTS]
        if "overfitted" in checkpoints:
            names += ["training/overfitted_history.csv", "training/overfitted_results.csv"]
        if self.cuttable(key.model):
            names.append("experiments/layers.parquet")
        return names

    def run_files(self, key: RunKey) -> list[str]:
        """Return the paths of what tables and figures need of a run."""
        return [self.run(name).format(**key._asdict()) for name in self.run_names(key)]

    def over_seeds(self, name: str) -> Callable[[Any], list[str]]:
        """Return the paths of a run's file for all seeds, as a function of a rule's wildcards dataset and model."""
        return lambda wildcards: [
            self.run(name).format(dataset=wildcards.dataset, model=wildcards.model, seed=seed)
            for seed in self.seeds(wildcards.model)
        ]

    def first_seed(self, name: str) -> Callable[[Any], str]:
        """Return the path of a run's file for the first seed, whose pictures are shown; see `over_seeds`."""
        return lambda wildcards: self.over_seeds(name)(wildcards)[0]

    def tables(self) -> list[str]:
        """Return the files of the study's tables."""
        return [f"{self.root}/tables/{table}.{form}" for table in TABLES for form in FORMATS]

    def figures_of(self, rule: str) -> dict[str, str]:
        """Return the titles of the figures that a rule draws, by name."""
        return {name: figure.title for name, figure in FIGURES.items() if figure.rule == rule}

    def figures(self) -> list[str]:
        """Return the files of the study's figures."""
        return [
            f"{self.root}/figures/{dataset}/{model}/{figure}.png"
            for dataset, model in self.networks()
            for figure in FIGURES
        ]

    def captioned_figures(self) -> list[list[str]]:
        """Return title, explanation and file of each figure, in the order of the report."""
        return [
            [f"{figure.title}: {model} on {dataset}", figure.caption,
             f"{self.root}/figures/{dataset}/{model}/{name}.png"]
            for dataset, model in self.networks()
            for name, figure in FIGURES.items()
        ]  # fmt: skip


def either(names: Iterable[str]) -> str:
    """Return the regular expression of a wildcard that takes one of these names; of none, one that never matches."""
    return "|".join(map(re.escape, names)) or "(?!)"


def _source_file(entry: ModelConfig) -> str:
    """Return a digest of the user's files behind a model, so that an edit of them is noticed."""
    place = entry.source.rpartition(":")[0]
    files = [path for path in (place, entry.weights or "") if path.endswith(".py") or path == entry.weights]
    return "+".join(file_digest(path) for path in files if Path(path).is_file())
