"""Take a user's own checkpoint into a run."""

from nnscan.artifacts import file_digest, provenance
from nnscan.data import read_dataset
from nnscan.jobs import job
from nnscan.models import load_weights, read_state
from nnscan.training import adopt, model_builder

with job(snakemake):
    dataset = read_dataset(snakemake.input.data)
    params, weights = snakemake.params, snakemake.input.weights
    model = model_builder(params.model["source"], params.model["options"], dataset)()
    load_weights(model, read_state(weights, params.state_dict_key, params.strip_prefix), weights)
    origin = provenance(model=params.model, data=dataset.digest, checkpoint=file_digest(weights), code=params.code)
    adopt(model, dataset, snakemake.output.history.rpartition("/")[0], origin)
