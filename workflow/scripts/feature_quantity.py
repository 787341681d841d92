"""Feature quantity of every neuron and layer, and the diversity of every filter."""

from nnscan.artifacts import file_digest, provenance, write_frame
from nnscan.jobs import job
from nnscan.quantity import diversity, diversity_ablation, scan_quantity

with job(snakemake):
    quantities, layers = scan_quantity(snakemake.input.shards, **snakemake.params.quantity)
    origin = provenance(
        scan="+".join(map(file_digest, snakemake.input.shards)),
        seed=snakemake.wildcards.seed,
        code=snakemake.params.code,
    )
    write_frame(snakemake.output.quantity, quantities, origin)
    write_frame(snakemake.output.layers, layers, origin)
    write_frame(snakemake.output.diversity, diversity(quantities), origin)
    write_frame(snakemake.output.ablation, diversity_ablation(quantities), origin)
