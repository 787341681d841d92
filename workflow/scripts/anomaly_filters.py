"""Anomaly filters and their outlier samples."""

from nnscan.anomaly import network_anomalies
from nnscan.artifacts import file_digest, provenance, write_frame
from nnscan.components import read_components
from nnscan.jobs import job

with job(snakemake):
    seed, output = int(snakemake.wildcards.seed), snakemake.output
    files = zip(snakemake.input.components, output.anomaly, output.outliers, strict=True)
    for components, anomaly, outliers in files:
        filters, samples = network_anomalies(*read_components(components), seed, **snakemake.params.anomaly)
        origin = provenance(components=file_digest(components), seed=seed, code=snakemake.params.code)
        write_frame(anomaly, filters, origin)
        write_frame(outliers, samples, origin)
