"""Anomaly filters and their outlier samples."""

from nnscan.anomaly import network_anomalies
from nnscan.artifacts import file_digest, provenance, write_frame
from nnscan.components import read_components
from nnscan.jobs import job

with job(snakemake):
    samples, components = read_components(snakemake.input.components)
    filters, outliers = network_anomalies(
        samples, components, int(snakemake.wildcards.seed), **snakemake.params.anomaly
    )
    origin = provenance(
        components=file_digest(snakemake.input.components), seed=snakemake.wildcards.seed, code=snakemake.params.code
    )
    write_frame(snakemake.output.anomaly, filters, origin)
    write_frame(snakemake.output.outliers, outliers, origin)
