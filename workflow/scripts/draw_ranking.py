"""Write the page that ranks the methods of explanation and says what each score means."""

from nnscan.configuration import CONTROLS
from nnscan.evaluation import METRICS
from nnscan.explainers import METHODS
from nnscan.jobs import job
from nnscan.pages import ranking_page
from nnscan.rankings import MEASURES
from nnscan.rendering import read_csv
from nnscan.survey import title_of

with job(snakemake):
    params = snakemake.params
    told = {measure.metric for measure in MEASURES} | {"roar"}
    ranking_page(
        snakemake.output.page,
        params.study,
        read_csv(snakemake.input.scores),
        [metric for metric in METRICS if metric.name in told],
        [title_of(METHODS[name]) for name in CONTROLS],
        {(dataset, model): links for dataset, model, links in params.links},
    )
