rule feature_quantity:
    input:
        shards=[
            layout.run(f"scan/{{checkpoint}}/shard{shard}.h5")
            for shard in layout.shards()
        ],
    output:
        quantity=layout.run("metrics/{checkpoint}/quantity.parquet"),
        diversity=layout.run("metrics/{checkpoint}/diversity.parquet"),
    log:
        layout.log("feature_quantity", "dataset", "model", "seed", "checkpoint"),
    benchmark:
        layout.benchmark("feature_quantity", "dataset", "model", "seed", "checkpoint")
    conda:
        "../../envs/cpu.yaml"
    resources:
        mem_mb=lambda wildcards, attempt: 4000 * attempt,
        runtime=lambda wildcards, attempt: 30 * attempt,
    params:
        quantity=study.quantity.model_dump(),
        code=source_digest("quantity"),
    message:
        "Feature quantity of every neuron of {wildcards.model} on {wildcards.dataset}, seed {wildcards.seed}"
    script:
        "../scripts/feature_quantity.py"


rule interpretable_properties:
    input:
        data=layout.dataset("data.h5"),
        weights=layout.run("training/{checkpoint}.safetensors"),
        shards=[
            layout.run(f"scan/{{checkpoint}}/shard{shard}.h5")
            for shard in layout.shards()
        ],
    output:
        properties=layout.run("metrics/{checkpoint}/properties.parquet"),
    log:
        layout.log("interpretable_properties", "dataset", "model", "seed", "checkpoint"),
    benchmark:
        layout.benchmark(
            "interpretable_properties", "dataset", "model", "seed", "checkpoint"
        )
    conda:
        "../../envs/cpu.yaml"
    resources:
        mem_mb=lambda wildcards, attempt: 4000 * attempt,
        runtime=lambda wildcards, attempt: 60 * attempt,
    params:
        model=lambda wildcards: layout.model_parameters(wildcards.model),
        properties=study.properties.model_dump(),
        code=source_digest("properties", "training", "moments"),
    message:
        "Interpretable properties of the filters of {wildcards.model} on {wildcards.dataset}, seed {wildcards.seed}"
    script:
        "../scripts/interpretable_properties.py"


rule anomaly_filters:
    input:
        components=[
            layout.run(f"scan/{checkpoint}/components.h5")
            for checkpoint in CHECKPOINTS
        ],
    output:
        anomaly=[
            layout.run(f"metrics/{checkpoint}/anomaly.parquet")
            for checkpoint in CHECKPOINTS
        ],
        outliers=[
            layout.run(f"metrics/{checkpoint}/outliers.parquet")
            for checkpoint in CHECKPOINTS
        ],
    log:
        layout.log("anomaly_filters", "dataset", "model", "seed"),
    benchmark:
        layout.benchmark("anomaly_filters", "dataset", "model", "seed")
    wildcard_constraints:
        model=either(layout.overfitted()),
    conda:
        "../../envs/cpu.yaml"
    resources:
        mem_mb=lambda wildcards, attempt: 4000 * attempt,
        runtime=lambda wildcards, attempt: 60 * attempt,
    params:
        anomaly=study.anomaly.model_dump(exclude={"source", "samples"}),
        code=source_digest("anomaly"),
    message:
        "Anomaly filters of {wildcards.model} on {wildcards.dataset}, seed {wildcards.seed}"
    script:
        "../scripts/anomaly_filters.py"


use rule anomaly_filters as anomaly_filters_of_one_checkpoint with:
    input:
        components=[layout.run("scan/well_trained/components.h5")],
    output:
        anomaly=[layout.run("metrics/well_trained/anomaly.parquet")],
        outliers=[layout.run("metrics/well_trained/outliers.parquet")],
    wildcard_constraints:
        model=either(layout.never_overfitted()),


rule similarity:
    input:
        data=layout.dataset("data.h5"),
        weights=layout.run("training/{checkpoint}.safetensors"),
        averages=layout.run("averages/averages.h5"),
    output:
        similarity=layout.run("metrics/{checkpoint}/similarity.parquet"),
    log:
        layout.log("similarity", "dataset", "model", "seed", "checkpoint"),
    benchmark:
        layout.benchmark("similarity", "dataset", "model", "seed", "checkpoint")
    conda:
        "../../envs/cpu.yaml"
    resources:
        mem_mb=lambda wildcards, attempt: 4000 * attempt,
        runtime=lambda wildcards, attempt: 60 * attempt,
    params:
        model=lambda wildcards: layout.model_parameters(wildcards.model),
        layers=study.scan.layers,
        code=source_digest("averages", "similarities", "training"),
    message:
        "Similarity of the neurons of {wildcards.model} on {wildcards.dataset}, seed {wildcards.seed}"
    script:
        "../scripts/similarity.py"
