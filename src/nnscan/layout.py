"""Where a study's files lie, and which of them a study asks for; the Snakefile is written in these terms.

Nothing here imports torch: every job of a cluster parses the Snakefile again.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from nnscan.artifacts import file_digest
from nnscan.configuration import ModelConfig, Stage, Study
from nnscan.places import FETCHED, NO_FILES, data_root, data_state, needs_files

CUTTABLE = {"simple_cnn": 3, "vgg11": 8, "vgg16": 13}
"""Models of the zoo that can be cut after a convolution, with their number of convolutions."""


PROTOTYPED = ("lenet5", "simple_cnn", "alexnet", "vgg11", "vgg16", "resnet18")
"""Models of the zoo whose convolutional part a ProtoPNet can be built on."""

DISSECTED = ("untrained", "third1", "third2", "well_trained")
"""Checkpoints of a training that are dissected."""

MEASURED = ("untrained", "well_trained", "shuffled")
"""Checkpoints of a training whose intrinsic dimension is measured."""


QUESTIONS = ("localisation", "faithfulness", "sanity", "stability", "attack", "cost")
"""What is asked of explanations, each of which is a job of every run."""

SHOWN_LAYERS, SHOWN_UNITS, SHOWN_IMAGES = 8, 6, 5
"""Layers, units of each and images of each unit that the gallery of units shows at most."""


class Figure(NamedTuple):
    """A figure of a data set and model.

    Attributes:
        rule: The rule that draws it.
        title: What it shows.
        caption: How to read it.
        stage: The stage of a study that asks for it.
    """

    rule: str
    title: str
    caption: str
    stage: Stage = "theses"


FIGURES = {
    "class_averages": Figure(
        "draw_figures",
        "Class-average images",
        "Each column is a class, each row a way to average its training images: all of them, stretched to the "
        "class's range (simple); those of highest and of lowest confidence; the simple one after gradient "
        "ascent on the class's score. The number is the network's confidence that the average belongs to its "
        "class. Below, the confidence of every class for every average: a bright diagonal means that averages are "
        "recognised. First seed.",
    ),
    "learning_images": Figure(
        "draw_figures",
        "Learning images of the strongest and weakest neurons",
        "Which input pixels reach a neuron, and with what weight: red raises its value, blue lowers it. Early "
        "layers see a few pixels, late ones the whole object. The input stands above each learning image. "
        "First seed.",
    ),
    "learning_process": Figure(
        "draw_neurons",
        "What a network learns, layer by layer",
        "Each row is a test image, each column a layer; the picture is the learning image of the layer's most "
        "activated neuron, red raises its value, blue lowers it. A fully connected network of the study stands above. "
        "First seed.",
    ),
    "knowledge": Figure(
        "draw_neurons",
        "Knowledge amount of each layer",
        "Count: share of the input's pixels in the support of an active neuron's learning image. Intensity: sum of "
        "the image's absolute values, as a multiple of the input's. A fully connected network of the study stands "
        "beside.",
    ),
    "distances": Figure(
        "draw_neurons",
        "Distances of learning images to their own and to other samples",
        "Means over drawn neurons of each layer. Left: L2 distance in the input's units, which the input's own size "
        "dominates. Middle: with image and sample scaled to unit norm, where 1.41 is unrelated. Right: how much nearer "
        "the own sample is; 0 is a neuron whose image does not depend on the sample it sees.",
    ),
    "winners": Figure(
        "draw_neurons",
        "Distances of the output neurons' learning images to the input",
        "Curves: mean distance to the input by the rank of the neuron's score; the winner stands first. Bars: share of "
        "test images for which the winner is the nearest. Pictures: the images of two test images' highest class "
        "scores; the number is the scaled distance. Pictures of the first seed.",
    ),
    "feature_maps": Figure(
        "draw_neurons",
        "Learning images and their feature maps",
        "For the most activated filters of each layer: the feature map above, below it the sum of the absolute "
        "learning images of the filter's neurons, which is finer. First scanned sample, first seed.",
    ),
    "quantity": Figure(
        "draw_figures",
        "Feature quantity by layer",
        "FQ weighs how well a neuron's learning image matches the foreground (SSIM) by how much of it the "
        "neuron sees. SSIM alone is high for nearly blank images; FQ is not. Mean and variance over the neurons of "
        "a layer.",
    ),
    "quantity_correlation": Figure(
        "draw_neurons",
        "Correlation of feature quantity and activation",
        "Pearson's r over the neurons of a layer; of each neuron its FQ and its activation on the sample that FQ is "
        "taken from. Neurons that are never active have neither and raise r, so the active ones stand beside.",
    ),
    "quantity_ablation": Figure(
        "draw_neurons",
        "Feature quantity without each of its elements",
        "The product l c s vf nf, and with one factor left out: correlation with the activation, mean and variance "
        "over a layer's neurons. Factors are at most 1, so leaving one out cannot lower the mean.",
    ),
    "explanations": Figure(
        "draw_explanations",
        "Learning images beside other explanations",
        "Maps of some scanned test images, each stretched to its own range. NNS: sum of the absolute learning images "
        "of the last convolutional layer's neurons; FQ: the same, weighted with each neuron's feature quantity, which "
        "knows the foreground mask; TIP: size of the sum of the layer's filter images. Of these nothing remains where "
        "the input is zero. The others explain the class that the network gives: CAM is defined for global pooling "
        "and one linear layer only; how the slides got it for AlexNet and VGG they do not say. First seed.",
    ),
    "backpropagations": Figure(
        "draw_explanations",
        "Four kinds of backpropagation on the same images",
        "The class score carried back to the pixels: its gradient; deconvolution, where a ReLU lets positive gradients "
        "pass; guided backpropagation, where its output has to be positive too; integrated gradients from the zero "
        "image. Largest size over the channels, each map stretched to its own range. First seed.",
    ),
    "similarity_measures": Figure(
        "draw_explanations",
        "Five similarity measures compared",
        "A class average beside its picture, the guided-backpropagation image of its class score. A good measure "
        "finds it more alike than another class's picture and than its own with shuffled pixels, recognises the "
        "average at half brightness, and changes little when the picture is dimmed. Means over the classes, bars: "
        "spread over seeds. The cosine cannot change with brightness, by definition.",
    ),
    "similar_neurons": Figure(
        "draw_explanations",
        "The least and the most similar neurons of some layers",
        "Guided-backpropagation images of filters for the most confident average of the class with the lowest test "
        "accuracy, with their similarity values. Filters that are not active are left out. Red and blue, or color "
        "around gray: positive and negative values, each image stretched to its own range. First seed.",
    ),
    "similarity": Figure(
        "draw_figures",
        "Similarity by layer",
        "Cosine between a class average (method 1), or the guided-backpropagation image of its class score "
        "(method 2), and each neuron's guided-backpropagation image: mean and standard deviation over the "
        "filters of a layer. Thin lines are classes. Means over the seeds.",
    ),
    "strongest_filters": Figure(
        "draw_filters",
        "The filter that ranks first by each property",
        "Of the layer whose filters are masked: the filter of the highest mean, variance, covariance with the input "
        "and correlation with the input, with its image for some test images. Red raises the filter's values, blue "
        "lowers them, each picture on its own scale; a picture is empty where the filter is not active. One filter may "
        "lead several rankings. First seed.",
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
    "anomaly_history": Figure(
        "draw_filters",
        "Loss and anomaly filters over the epochs",
        "Along the overfitting training: the losses (a), how many filters are anomalies in the checkpoints kept on "
        "the way (b), and how many show each of the three signs (c). Crosses are the well-trained networks, which "
        "come from the regular training, at their epochs.",
    ),
    "cut_training": Figure(
        "draw_explanations",
        "Training curves of the cut networks",
        "The network cut after the layer where its similarity curve peaks, one layer later, and whole, all trained "
        "alike. A network that overfits less reaches its lowest validation loss later. The thesis shows losses and "
        "accuracy on the test data; ours are of the validation split.",
    ),
    "anomaly": Figure(
        "draw_figures",
        "Anomaly filters and their outlier samples",
        "Left: how many filters are anomalies. Right: each point is an image of the training set as one "
        "filter sees it; a few points far away from a dense cloud make an anomaly filter. Of the last "
        "checkpoint and first seed: anomaly filters first, then filters with outliers, by CH index.",
    ),
    "detectors": Figure(
        "draw_units",
        "What the units of each layer detect",
        "Distinct concepts that some unit of the layer detects: the concept that its highest activations overlap with "
        "best, if they do so well enough. Counted by each unit's best concept, or by the best one in each "
        "category.",
        "dissection",
    ),
    "detectors_over_training": Figure(
        "draw_units",
        "Unique detectors before, during and after training",
        "Distinct concepts, each unit's best ones in all categories, with random weights, after a third and two "
        "thirds of the training, and at its lowest validation loss. What the random network detects is chance, "
        "or comes from single pixels.",
        "dissection",
    ),
    "unit_galleries": Figure(
        "draw_units",
        "Units that detect something, and the images that activate them most",
        f"Of each dissected layer ({SHOWN_LAYERS} of them at most), the best units of each concept first. What lies "
        "outside the unit's mask, where its enlarged map is above its threshold, is dimmed; the mask is outlined. "
        "First seed.",
        "dissection",
    ),
    "rotation": Figure(
        "draw_units",
        "Unique detectors of a rotated layer",
        "The last dissected layer is multiplied by a power of a random rotation and what reads it by the inverse: the "
        "network's answers stay the same, its units become other ones. If concepts belong to the network's own units, "
        "the curve falls.",
        "dissection",
    ),
    "unit_explanations": Figure(
        "draw_units",
        "Predictions explained by units",
        "Test images, and how much the score of the class that the network gives falls when one unit of the last "
        "dissected layer is set to zero. A unit is named by the concept that it detects. First seed.",
        "dissection",
    ),
    "dimension": Figure(
        "draw_dimension",
        "Intrinsic dimension by layer",
        "Left: TwoNN, from the input to the class scores; above 20 values are lower bounds. Right: how many principal "
        "components hold 90 % of the variance. Bars: spread over the seeds.",
        "dimension",
    ),
    "dimension_blocks": Figure(
        "draw_dimension",
        "Intrinsic dimension by number of points",
        "The estimate on ever smaller parts of the images: where a curve is level, it does not depend on the scale. "
        "Trained network, first seed.",
        "dimension",
    ),
    "dimension_errors": Figure(
        "draw_dimension",
        "Dimension of the last hidden layer and test error",
        "Each point is a run of one of the study's networks on this data set; horizontal bars are the estimates' own. "
        "Pearson's r over the runs; seeds of one network are alike, so no interval belongs to it.",
        "dimension",
    ),
    "prototypes": Figure(
        "draw_prototypes",
        "Prototypes of a ProtoPNet",
        "Each prototype is a patch of a training image: where its similarity to the image, enlarged, is in the highest "
        "5 %. First seed.",
        "prototypes",
    ),
    "likeness": Figure(
        "draw_prototypes",
        "This looks like that: a right answer",
        "The most activated prototypes for a test image, where it is similar to them, and what they add to each class "
        "score; the contributions of all prototypes add up to the scores. First seed.",
        "prototypes",
    ),
    "likeness_wrong": Figure(
        "draw_prototypes",
        "This looks like that: a wrong answer",
        "The same for a test image that the ProtoPNet takes for another class. First seed.",
        "prototypes",
    ),
    "contact_sheet": Figure(
        "draw_explainers",
        "All methods of explanation on the same images",
        "Rows are methods, columns are test images; above each image the class that the network gives it, which is the "
        "one explained, and the true one where it errs. Each map is stretched to its own range: from dark, the "
        "smallest value, to bright; maps with a sign are red where they speak for the class, blue where against it. A "
        "method that does not fit the network says why. First seed.",
        "explainers",
    ),
    "synthesis": Figure(
        "draw_explainers",
        "Images that the network takes for each class",
        "Activation maximisation without (AM) and with a generator of images (DGN-AM), beside an image of the "
        "validation split. Below each: the probability that the network gives the class, and how many of the networks "
        "of other seeds agree. First seed.",
        "explainers",
    ),
    "faithfulness_curves": Figure(
        "draw_explainers",
        "The class while pixels leave and come back",
        "Probability of the explained class while pixels are removed (left, the lower the better) or come back into "
        "the blurred image (right, the higher the better), those first that a map calls most important. In color "
        "the five methods that are best at either, by the area below the curve; black the controls, gray all others. "
        "Means over the images and the seeds.",
        "explainers",
    ),
    "explainer_ranks": Figure(
        "draw_explainers",
        "Ranks of the methods of explanation, and where scores disagree",
        "Left: the rank of each method by each score, 1 the best; the columns at the right are the mean places by "
        "question, 0 the first and 1 the last. Methods of the best mean place stand above. Right: Kendall's tau of the "
        "ranks by two scores: red where they rank alike, blue where the other way round. Means over the seeds.",
        "explainers",
    ),
    "retraining_curves": Figure(
        "draw_retraining",
        "Accuracy after training without the pixels that methods point at",
        "Test accuracy of networks that were trained anew without the most important pixels of all images (ROAR). A "
        "method that finds what matters falls below random pixels. Means over the seeds, bands: standard deviation.",
        "retraining",
    ),
}
"""The figures of a data set and model, by file name, in the order of the report."""

_LINKED = ("draw_explainers", "draw_retraining")  # from the page that ranks methods of explanation

_OF_THESES: tuple[str, ...] = (
    "slides_3-3", "slides_3-4", "slides_4-2", "slides_4-3", "slides_4-4", "slides_4-5", "slides_5-1", "slides_5-2",
    "slides_5-3", "slides_6-2", "slides_6-3", "slides_6-4", "slides_6-5",
    "thesis_4-1", "thesis_4-2", "thesis_5-1", "thesis_5-1_layers",
)  # fmt: skip

TABLES: dict[str, Stage] = {
    **dict.fromkeys(_OF_THESES, "theses"),
    "dissection_detectors": "dissection",
    "dissection_rotation": "dissection",
    "dimension_layers": "dimension",
    "dimension_error": "dimension",
    "prototypes_accuracy": "prototypes",
    **dict.fromkeys(("survey_1", "survey_2", "survey_3", "explainers_scores"), "explainers"),
    "explainers_retraining": "retraining",
}
"""The published tables that are rendered, and the stage of a study that asks for each."""

CHECKPOINTS = ("well_trained", "overfitted")

FORMATS = ("csv", "md", "tex", "html")

EXPERIMENTS = (
    "diversity_masking", "ablation_masking", "aipc", "anomaly_masking", "anomaly_single", "gradients", "pruning",
)  # fmt: skip


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
        # names of data sets and models may hold anything else that a path may
        return "+".join(f"{{{name}}}" for name in wildcards) or "all"

    def runs(self) -> list[RunKey]:
        """Return all runs of the study."""
        return [RunKey(*network, seed) for network in self.networks() for seed in self.seeds(network[1])]

    def runs_on(self, dataset: str, stage: Stage) -> list[RunKey]:
        """Return the runs on a data set of which a stage is asked for."""
        return [run for run in self.runs() if run.dataset == dataset and stage in self.stages(run.model)]

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

    def companion(self, dataset: str, model: str) -> str | None:
        """Return the study's fully connected network, to be shown beside another model on a data set; else None."""
        others = (name for data, name in self.networks() if data == dataset and name != model)
        return next((name for name in others if self.study.model(name).source == "fcn"), None)

    def of_companion(self, name: str) -> Callable[[Any], list[str]]:
        """Return the paths of a file of the companion's run for all its seeds, as `over_seeds`; none without one."""

        def paths(wildcards: Any) -> list[str]:
            other = self.companion(wildcards.dataset, wildcards.model)
            return [
                self.run(name).format(dataset=wildcards.dataset, model=other, seed=seed)
                for seed in (self.seeds(other) if other else [])
            ]

        return paths

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

    def dissected(self, model: str) -> list[str]:
        """Return the checkpoints of a model that are dissected."""
        return list(DISSECTED) if model in self.trained() else ["well_trained"]

    def measured(self, model: str) -> list[str]:
        """Return the checkpoints of a model whose intrinsic dimension is measured."""
        if model not in self.trained():
            return ["well_trained"]
        return [name for name in MEASURED if name != "shuffled" or model in self.overfitted()]

    def stages(self, model: str) -> list[Stage]:
        """Return what is measured on a model; a ProtoPNet can be built on some only."""
        entry = self.study.model(model)
        own = [stage for stage in self.study.stages if entry.stages is None or stage in entry.stages]
        return [stage for stage in own if stage != "prototypes" or entry.source in PROTOTYPED]

    @property
    def concepts(self) -> str:
        """The folder of the labelled images, in Broden's format."""
        settings = self.study.dissection
        return f"{self.root}/concepts" if settings.concepts == "camvid" else str(data_root(settings.root))

    def concepts_state(self) -> str:
        """Return a digest of name, size and time of the files of the labelled images."""
        return data_state(self.study.dissection.concepts, self.study.dissection.root)

    def uses(self, model: str, method: str) -> bool:
        """Return whether a method of explanation is among those of a model."""
        names = self.study.methods_of(model)
        return names is None or method in names

    def infillers(self, wildcards: Any) -> list[str]:
        """Return the path of the network that fills hidden pixels where a model's methods need it."""
        return self._infiller(wildcards) if self.uses(wildcards.model, "generative_infilling") else []

    def retraining_infillers(self, wildcards: Any) -> list[str]:
        """Return the path of that network where the methods whose pixels are removed need it."""
        return self._infiller(wildcards) if "generative_infilling" in self.study.retrained else []

    def _infiller(self, wildcards: Any) -> list[str]:
        return [self.dataset("infiller/infiller.safetensors").format(dataset=wildcards.dataset)]

    def generators(self, wildcards: Any) -> list[str]:
        """Return the path of the generator of images where a model's methods need it."""
        return [self._own("training/generator.safetensors", wildcards)] if self.uses(wildcards.model, "dgn_am") else []

    def shuffled_of(self, wildcards: Any) -> list[str]:
        """Return the path of the model trained on shuffled labels, where the question needs it and there is one."""
        asked = wildcards.question == "sanity" and wildcards.model in self.overfitted()
        return [self._own("training/shuffled.safetensors", wildcards)] if asked else []

    def judges(self, wildcards: Any) -> list[str]:
        """Return the paths of a run's model from other seeds."""
        others = [seed for seed in self.seeds(wildcards.model) if str(seed) != wildcards.seed]
        name = self.run("training/well_trained.safetensors")
        return [name.format(dataset=wildcards.dataset, model=wildcards.model, seed=seed) for seed in others]

    def _own(self, name: str, wildcards: Any) -> str:
        return self.run(name).format(dataset=wildcards.dataset, model=wildcards.model, seed=wildcards.seed)

    def on_the_way(self) -> list[str]:
        """Return the checkpoints that the overfitting training keeps before its end (`training.kept_epochs`)."""
        return [f"overfitting{part}" for part in range(1, self.study.anomaly.history_checkpoints + 1)]

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

    def protocol(self, model: str, phase: Literal["regular", "overfitting", "shuffled"]) -> dict[str, Any]:
        """Return the settings of a model's training that a phase follows; a change of the others is none of its own."""
        ignored = ("overfitting_epochs",) if phase == "regular" else ("epochs", "weight_decay", "augmentation")
        return self.study.training_of(model).model_dump(exclude={"preset", *ignored})

    def data_state(self, name: str) -> str:
        """Return a digest of name, size and time of the files that a data set is read from.

        Of a set that may be fetched it is a constant: before it is there and afterwards nothing has changed.
        """
        entry = self.study.dataset(name)
        return NO_FILES if entry.download else data_state(entry.source, entry.root)

    def without_files(self, datasets: Iterable[str], concepts: bool) -> list[str]:
        """Return, of data sets that are to be read, a sentence about each whose files are not there.

        Args:
            datasets: Their names.
            concepts: Whether the labelled images are to be read, too.
        """
        entries = [self.study.dataset(name) for name in datasets]
        asked: list[tuple[str, str, str | None, bool]]
        asked = [(f"data set {own.name!r}", own.source, own.root, own.download) for own in entries]
        if concepts:
            asked.append(("the labelled images", self.study.dissection.concepts, self.study.dissection.root, False))
        return [
            f"{what} ({source}): no file below {data_root(root)}; name the folder by root or NNSCAN_DATA"
            + (", or set download: true" if source in FETCHED else "")
            for what, source, root, download in asked
            if not download and needs_files(source) and data_state(source, root) == NO_FILES
        ]

    def shards(self) -> list[int]:
        """Return the numbers of the scan's shards."""
        return list(range(min(self.study.scan.shards, self.study.scan.samples)))

    def run_names(self, key: RunKey) -> list[str]:
        """Return what tables and figures need of a run, relative to its folder; other files there are leftovers."""
        names = ["training/history.csv", "training/results.csv"]
        stages = self.stages(key.model)
        names += self._of_theses(key.model) if "theses" in stages else []
        names += self._of_systems(key.model, stages)
        return names

    def _of_systems(self, model: str, stages: Sequence[Stage]) -> list[str]:
        names = []
        if "dissection" in stages:
            names += [
                f"metrics/{checkpoint}/{name}.parquet"
                for checkpoint in self.dissected(model)
                for name in ("units", "exemplars", "detectors")
            ]
            names.append("experiments/rotations.parquet")
        if "dimension" in stages:
            names += [
                f"metrics/{checkpoint}/{name}.parquet"
                for checkpoint in self.measured(model)
                for name in ("dimension", "dimension_blocks")
            ]
        if {"dimension", "explainers"} & set(stages) and model in self.overfitted():
            names += ["training/shuffled_history.csv", "training/shuffled_results.csv"]
        if "explainers" in stages:
            names += ["explainers/atlas.h5", "explainers/images.h5", "explainers/images.parquet"]
            names += [f"explainers/{question}.parquet" for question in QUESTIONS]
        if "retraining" in stages:
            names.append("explainers/retraining.parquet")
        if "prototypes" in stages:
            names += [f"training/prototypes{name}.csv" for name in ("", "_distinct", "_history", "_results")]
        return names

    def _of_theses(self, model: str) -> list[str]:
        names = ["averages/averages.h5"]
        names += [
            f"metrics/well_trained/{name}.parquet"
            for name in (
                *("quantity", "diversity", "properties", "similarity"),
                *("quantity_layers", "knowledge", "agreement", "distances", "winners"),
                *("classes", "measures", "localisation"),
            )
        ]
        checkpoints = self.checkpoints(model)
        names += [
            f"metrics/{checkpoint}/{name}.parquet" for checkpoint in checkpoints for name in ("anomaly", "outliers")
        ]
        names += [f"experiments/{name}.parquet" for name in EXPERIMENTS]
        if model in self.trained():
            names.append("experiments/filter_types.parquet")
        if "overfitted" in checkpoints:
            names += ["training/overfitted_history.csv", "training/overfitted_results.csv"]
            names.append("metrics/anomaly_history.parquet")
        if self.cuttable(model):
            names += ["experiments/layers.parquet", "experiments/layers_histories.parquet"]
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
        return [f"{self.root}/tables/{table}.{form}" for table in self.table_names() for form in FORMATS]

    def table_names(self) -> list[str]:
        """Return the tables that the study's stages ask for."""
        return [name for name, stage in TABLES.items() if stage in self.study.stages]

    def shown(self) -> dict[str, Stage]:
        """Return the tables and figures that the study's stages ask for, and the stage of each."""
        every = TABLES | {name: figure.stage for name, figure in FIGURES.items()}
        return {name: stage for name, stage in every.items() if stage in self.study.stages}

    def figure_names(self, model: str) -> list[str]:
        """Return the figures of a model that its stages ask for."""
        return [name for name, figure in FIGURES.items() if figure.stage in self.stages(model)]

    def figures_of(self, rule: str) -> dict[str, str]:
        """Return the titles of the figures that a rule draws, by name."""
        return {name: figure.title for name, figure in FIGURES.items() if figure.rule == rule}

    def figures(self) -> list[str]:
        """Return the files of the study's figures."""
        return [
            f"{self.root}/figures/{dataset}/{model}/{figure}.png"
            for dataset, model in self.networks()
            for figure in self.figure_names(model)
        ]

    def pages(self) -> dict[str, str]:
        """Return the study's interactive pages, by the figure that each belongs to."""
        places = {"similarity": self.page, "explainer_ranks": self.ranking}
        return {
            f"{self.root}/figures/{dataset}/{model}/{figure}.png": place.format(dataset=dataset, model=model)
            for dataset, model in self.networks()
            for figure, place in places.items()
            if figure in self.figure_names(model)
        }

    @property
    def ranking(self) -> str:
        """The page on which the methods of explanation are ranked."""
        return f"{self.root}/explainers.html"

    def ranking_links(self) -> list[tuple[str, str, list[tuple[str, str]]]]:
        """Return the texts and addresses of the figures that the ranking page links to, by data set and model."""
        return [
            (dataset, model, [(FIGURES[name].title, f"figures/{dataset}/{model}/{name}.png") for name in names])
            for dataset, model in self.networks()
            if (names := [name for name in self.figure_names(model) if FIGURES[name].rule in _LINKED])
        ]

    @property
    def page(self) -> str:
        """The pattern of the interactive page of the similarity curves."""
        return f"{self.root}/figures/{{dataset}}/{{model}}/similarity.html"

    def captioned_figures(self, networks: Iterable[tuple[str, str]]) -> list[list[str]]:
        """Return title, explanation and file of each figure of some data sets and models, in the report's order."""
        return [
            [f"{FIGURES[name].title}: {model} on {dataset}", FIGURES[name].caption,
             f"{self.root}/figures/{dataset}/{model}/{name}.png"]
            for dataset, model in networks
            for name in self.figure_names(model)
        ]  # fmt: skip


def either(names: Iterable[str]) -> str:
    """Return the regular expression of a wildcard that takes one of these names; of none, one that never matches."""
    return "|".join(map(re.escape, names)) or "(?!)"


def _source_file(entry: ModelConfig) -> str:
    """Return a digest of the user's files behind a model, so that an edit of them is noticed."""
    place = entry.source.rpartition(":")[0]
    files = [path for path in (place, entry.weights or "") if path.endswith(".py") or path == entry.weights]
    return "+".join(file_digest(path) for path in files if Path(path).is_file())
