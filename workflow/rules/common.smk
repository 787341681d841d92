import sys

from snakemake.utils import min_version

from nnscan.artifacts import source_digest
from nnscan.configuration import parse_study
from nnscan.errors import NnscanError
from nnscan.layout import (
    CHECKPOINTS,
    CUTTABLE,
    TABLES,
    Layout,
    either,
)

min_version("9.19.0")


if not config:

    configfile: f"{workflow.basedir}/config/config.yaml"


try:
    study = parse_study(config)
except NnscanError as error:
    sys.exit(f"nnscan: {error}")

layout = Layout(study)
published = f"{workflow.basedir}/workflow/published"


wildcard_constraints:
    dataset=either(dataset.name for dataset in study.datasets),
    model=either(model.name for model in study.models),
    seed=either(map(str, study.seeds)),
    checkpoint=either(("third1", "third2", "third3", *CHECKPOINTS)),
    shard=r"\d+",


report: "../report/workflow.rst"
