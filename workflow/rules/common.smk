import re
import sys

from snakemake.utils import min_version

from nnscan.artifacts import source_digest
from nnscan.configuration import parse_study
from nnscan.errors import NnscanError
from nnscan.layout import CUTTABLE, FIGURES, FORMATS, TABLES, Layout

min_version("9.19.0")


if not config:

    configfile: "config/config.yaml"


try:
    study = parse_study(config)
except NnscanError as error:
    sys.exit(f"nnscan: {error}")

layout = Layout(study)


wildcard_constraints:
    dataset="|".join(re.escape(dataset.name) for dataset in study.datasets),
    model="|".join(re.escape(model.name) for model in study.models),
    seed="|".join(map(str, study.seeds)),
    checkpoint="third1|third2|third3|well_trained|overfitted",
    shard=r"\d+",


report: "../report/workflow.rst"
