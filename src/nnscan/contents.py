"""What the sources show, number by number, and where nnscan shows it.

Every numbered table, and every numbered figure that shows a measurement or a visualisation made by the sources' own
methods, has an entry. Diagrams of architectures and pictures taken from other papers have none.
"""

from __future__ import annotations

from typing import NamedTuple

from nnscan import slides, survey, systems, thesis

TABLES = {**slides.TABLES, **thesis.TABLES, **systems.TABLES, **survey.TABLES}
STATISTICS = {**slides.STATISTICS, **thesis.STATISTICS, **systems.STATISTICS, **survey.STATISTICS}
OVER_RUNS = systems.OVER_RUNS
"""Statistics of all runs of a data set together, with an interval of their own."""


class Item(NamedTuple):
    """A numbered table or figure of a source.

    Attributes:
        what: What it shows.
        shown: The table (`TABLES`) or figure (`layout.FIGURES`) of nnscan that shows it.
        measured: Whether it shows a measurement, about which a claim can be right or wrong; else it is a picture.
        judged_by: The entry whose claims judge it, where it draws the numbers of another.
    """

    what: str
    shown: str
    measured: bool = True
    judged_by: str = ""


CONTENTS = {
    "slides_fig_3-7": Item("learning process of FCN and CNN, layer by layer", "learning_process", measured=False),
    "slides_fig_3-8": Item("knowledge amount of each layer", "knowledge"),
    "slides_fig_3-9": Item("distances of learning images to their own and to other samples", "distances"),
    "slides_fig_3-10": Item("distances of the output neurons' learning images to the input", "winners"),
    "slides_3-3": Item("correlation of feature maps and learning images", "slides_3-3"),
    "slides_fig_3-13": Item("learning images and their feature maps", "feature_maps", measured=False),
    "slides_3-4": Item("IoU of the learning images of highly activated neurons", "slides_3-4"),
    "slides_fig_3-14": Item("learning images beside other explanations", "explanations", measured=False),
    "slides_4-2": Item("SSIM and FQ by layer", "slides_4-2"),
    "slides_fig_4-3": Item("Pearson correlation of FQ and activation by layer", "quantity_correlation"),
    "slides_fig_4-4": Item("mean and variance of FQ by layer", "quantity"),
    "slides_4-3": Item("loss without the most and the least diverse filters", "slides_4-3"),
    "slides_4-4": Item("the same, with one element of FQ left out", "slides_4-4"),
    "slides_fig_4-5": Item("effect of each element of FQ on correlation, mean and variance", "quantity_ablation"),
    "slides_4-5": Item("IoU of CAM, Grad-CAM and FQ with the object", "slides_4-5"),
    "slides_fig_5-3": Item("filters with the highest value of each property", "strongest_filters", measured=False),
    "slides_fig_5-4": Item("AIPC curves", "aipc", judged_by="slides_5-1"),
    "slides_5-1": Item("areas under the AIPC curves", "slides_5-1"),
    "slides_5-2": Item("rank correlation of AVoU and SoU with the properties", "slides_5-2"),
    "slides_5-3": Item("filters by foreground and background over three phases", "slides_5-3"),
    "slides_fig_5-6": Item("filter images beside CAM and Grad-CAM", "explanations", measured=False),
    "slides_fig_6-4": Item("loss and anomaly filters over epochs", "anomaly_history"),
    "slides_6-2": Item("anomaly filters, well trained and overfitted", "slides_6-2"),
    "slides_6-3": Item("gradients of outlier and normal samples", "slides_6-3"),
    "slides_6-4": Item("anomaly filters whose masking changes the accuracy", "slides_6-4"),
    "slides_6-5": Item("validation accuracy without anomaly filters", "slides_6-5"),
    "thesis_2.3": Item("five image similarity measures (ch. 2.3)", "similarity_measures"),
    "thesis_fig_3-7": Item("four kinds of backpropagation on the same images", "backpropagations", measured=False),
    "thesis_fig_4-1": Item("training curves", "training"),
    "thesis_4-1": Item("losses and accuracy after training", "thesis_4-1"),
    "thesis_fig_4-2": Item("class averages and their confidences (figures 4-2 to 4-13)", "class_averages"),
    "thesis_fig_4-14": Item(
        "the least and most similar neurons (figures 4-14 to 4-17)", "similar_neurons", measured=False
    ),
    "thesis_fig_4-18": Item("similarity curves by layer and class (figures 4-18 to 4-23)", "similarity"),
    "thesis_4-2": Item("test accuracy by class", "thesis_4-2"),
    "thesis_fig_5-1": Item("mean similarity curve that chooses the cut", "similarity"),
    "thesis_fig_5-2": Item("training curves of the cut networks", "cut_training"),
    "thesis_5-1_layers": Item("layer removal (ch. 5.1)", "thesis_5-1_layers"),
    "thesis_5-1": Item("accuracy after pruning neurons by similarity", "thesis_5-1"),
    "dissection_detectors": Item("unique detectors by layer", "dissection_detectors"),
    "dissection_rotation": Item("unique detectors of a rotated layer", "dissection_rotation"),
    "dimension_layers": Item("intrinsic dimension by layer", "dimension_layers"),
    "dimension_error": Item("intrinsic dimension of the last hidden layer and test error", "dimension_error"),
    "prototypes_accuracy": Item("accuracy of ProtoPNet and of its backbone", "prototypes_accuracy"),
    "survey_1": Item("gradient methods compared", "survey_1"),
    "survey_2": Item("class activation maps compared", "survey_2"),
    "survey_3": Item("all methods of explanation compared", "survey_3"),
    "survey_fig_23": Item("activation maximisation on MNIST", "synthesis", measured=False),
    "survey_fig_32": Item("methods of explanation on the same images", "contact_sheet", measured=False),
    "explainers_scores": Item("all scores of all methods of explanation", "explainers_scores"),
    "explainers_retraining": Item("accuracy after training without important pixels", "explainers_retraining"),
}
