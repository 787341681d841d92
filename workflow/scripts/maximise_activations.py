"""Make images that a network answers most strongly, and ask other networks about them."""

from nnscan.artifacts import file_digest, provenance, write_frame
from nnscan.atlas import judged_images, setting_of, synthesised, write_images
from nnscan.costs import synthesis_costs
from nnscan.data import read_dataset
from nnscan.explainers import chosen
from nnscan.jobs import job
from nnscan.training import restore

with job(snakemake):
    files, params, seed = snakemake.input, snakemake.params, int(snakemake.wildcards.seed)
    methods, dataset = chosen(params.methods), read_dataset(files.data)
    source, options = params.model["source"], params.model["options"]
    model = restore(source, options, dataset, files.weights)
    judges = [restore(source, options, dataset, path) for path in files.judges]
    setting = setting_of(dataset, seed, generator=files.generator)
    images, refusals = synthesised(model, dataset, methods, setting)
    scores = judged_images(images, refusals, model, judges, dataset)
    costs = synthesis_costs(model, images, methods, setting)
    origin = provenance(
        data=dataset.digest,
        checkpoint=file_digest(files.weights),
        generator="+".join(map(file_digest, files.generator)),
        judges="+".join(map(file_digest, files.judges)),
        seed=seed,
        code=params.code,
    )
    write_images(snakemake.output.images, images, refusals, origin)
    write_frame(snakemake.output.scores, scores.merge(costs, "left", "method"), origin)
