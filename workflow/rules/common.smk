import sys
import threading
from os.path import dirname, exists

from snakemake.utils import min_version

from nnscan.artifacts import check_folder, source_digest
from nnscan.configuration import parse_study
from nnscan.errors import NnscanError
from nnscan.gaps import (
    announce,
    clear,
    complete_networks,
    complete_runs,
    gaps,
    sentences,
)
from nnscan.layout import (
    CHECKPOINTS,
    CUTTABLE,
    QUESTIONS,
    Layout,
    either,
)
from nnscan.limits import refuse_links

min_version("9.19.0")


if not config:

    configfile: f"{workflow.basedir}/config/config.yaml"


try:
    study = parse_study(config)
except NnscanError as error:
    sys.exit(f"nnscan: {error}")

layout = Layout(study)
if workflow.is_main_process:
    try:
        if named := study.named_methods():
            # methods are known where their libraries are: only here these are worth the seconds
            from nnscan.explainers import check_names

            check_names(named)
        refuse_links(layout.root)
        check_folder(
            layout.root, [model.weights for model in study.models if model.weights]
        )
    except NnscanError as error:
        sys.exit(f"nnscan: {error}")
published = f"{workflow.basedir}/workflow/published"
# what rules that train or scan ask for; on one machine a count only, on a cluster a GPU
gpus = 0 if study.device == "cpu" else 1


def drawn(rule_name):
    """Return the figures that a rule draws as its outputs, with captions in Snakemake's report."""
    return {
        name: report(
            f"{layout.root}/figures/{{dataset}}/{{model}}/{name}.png",
            caption=f"../report/{name}.rst",
            category="Figures",
            subcategory="{dataset} {model}",
            labels={"figure": title},
        )
        for name, title in layout.figures_of(rule_name).items()
    }


def cancel_clocks():
    """Stop the clocks of max-jobs-per-timespan (profiles/default), for the last of which Snakemake would wait."""
    for thread in threading.enumerate():
        if isinstance(thread, threading.Timer):
            thread.cancel()


wildcard_constraints:
    dataset=either(dataset.name for dataset in study.datasets),
    model=either(model.name for model in study.models),
    seed=either(map(str, study.seeds)),
    checkpoint=either(
        ("untrained", "third1", "third2", "third3", *CHECKPOINTS, "shuffled")
    ),
    shard=r"\d+",


report: "../report/workflow.rst"
