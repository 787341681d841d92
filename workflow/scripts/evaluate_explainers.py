"""Answer one question about the explanations of a network."""

from nnscan.artifacts import file_digest, provenance, write_frame
from nnscan.atlas import read_atlas, setting_of
from nnscan.data import read_dataset
from nnscan.evaluation import evaluate
from nnscan.explainers import chosen
from nnscan.explanations import read_scanned
from nnscan.jobs import job
from nnscan.training import restore

with job(snakemake):
    files, params, own = snakemake.input, snakemake.params, snakemake.wildcards
    methods, dataset = chosen(params.methods), read_dataset(files.data)
    source, options = params.model["source"], params.model["options"]
    shuffled = restore(source, options, dataset, files.shuffled[0]) if files.shuffled else None
    scores = evaluate(
        own.question,
        restore(source, options, dataset, files.weights),
        dataset,
        read_atlas(files.atlas),
        setting_of(dataset, int(own.seed), read_scanned(files.shards, **params.quantity), files.infiller),
        methods,
        params.judged,
        shuffled,
    )
    origin = provenance(
        data=dataset.digest,
        checkpoint=file_digest(files.weights),
        shuffled="+".join(map(file_digest, files.shuffled)),
        atlas=file_digest(files.atlas),
        seed=own.seed,
        code=params.code,
    )
    write_frame(snakemake.output.scores, scores, origin)
