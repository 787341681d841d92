rule feature_quantity:
    input:
        shards=[
            layout.run(f"scan/{{checkpoint}}/shard{shard}.h5")
            for shard in layout.shards()
        ],
    output:
        quantity=layout.run("metrics/{checkpoint}/quantity.parquet"),
        layers=layout.run("metrics/{checkpoint}/quantity_layers.parquet"),
        diversity=layout.run("metrics/{checkpoint}/diversity.parquet"),
        ablation=layout.run("metrics/{checkpoint}/diversity_ablation.parquet"),
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


rule neuron_knowledge:
    input:
        data=layout.dataset("data.h5"),
        weights=layout.run("training/{checkpoint}.safetensors"),
        shards=[
            layout.run(f"scan/{{checkpoint}}/shard{shard}.h5")
            for shard in layout.shards()
        ],
    output:
        knowledge=layout.run("metrics/{checkpoint}/knowledge.parquet"),
        agreement=layout.run("metrics/{checkpoint}/agreement.parquet"),
        distances=layout.run("metrics/{checkpoint}/distances.parquet"),
        winners=layout.run("metrics/{checkpoint}/winners.parquet"),
    log:
        layout.log("neuron_knowledge", "dataset", "model", "seed", "checkpoint"),
    benchmark:
        layout.benchmark("neuron_knowledge", "dataset", "model", "seed", "checkpoint")
    conda:
        "../../envs/cpu.yaml"
    resources:
        mem_mb=lambda wildcards, attempt: 4000 * attempt,
        runtime=lambda wildcards, attempt: 60 * attempt,
    params:
        model=lambda wildcards: layout.model_parameters(wildcards.model),
        knowledge=study.knowledge.model_dump(),
        code=source_digest("knowledge", "training"),
    message:
        "Knowledge of the neurons of {wildcards.model} on {wildcards.dataset}, seed {wildcards.seed}"
    script:
        "../scripts/neuron_knowledge.py"


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
        properties=study.properties.model_dump(exclude={"type_share"}),
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
        anomaly=study.anomaly.model_dump(
            exclude={"source", "samples", "history_checkpoints"}
        ),
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


rule anomaly_history:
    input:
        data=layout.dataset("data.h5"),
        weights=[
            layout.run(f"training/{checkpoint}.safetensors")
            for checkpoint in layout.on_the_way()
        ],
        anomaly=[
            layout.run(f"metrics/{checkpoint}/anomaly.parquet")
            for checkpoint in CHECKPOINTS
        ],
        history=layout.run("training/history.csv"),
    output:
        history=layout.run("metrics/anomaly_history.parquet"),
    log:
        layout.log("anomaly_history", "dataset", "model", "seed"),
    benchmark:
        layout.benchmark("anomaly_history", "dataset", "model", "seed")
    wildcard_constraints:
        model=either(layout.overfitted()),
    conda:
        "../../envs/cuda.yaml"
    resources:
        gpu=gpus,
        mem_mb=lambda wildcards, attempt: 6000 * attempt,
        runtime=lambda wildcards, attempt: 240 * attempt,
    params:
        model=lambda wildcards: layout.model_parameters(wildcards.model),
        protocol=lambda wildcards: layout.protocol(wildcards.model, "overfitting"),
        anomaly=study.anomaly.model_dump(exclude={"history_checkpoints"}),
        layers=study.scan.layers,
        code=source_digest("anomaly", "components", "scanner", "training"),
    message:
        "Anomaly filters along the overfitting training of {wildcards.model} on {wildcards.dataset}, seed {wildcards.seed}"
    script:
        "../scripts/anomaly_history.py"


rule similarity:
    input:
        data=layout.dataset("data.h5"),
        weights=layout.run("training/{checkpoint}.safetensors"),
        averages=layout.run("averages/averages.h5"),
    output:
        similarity=layout.run("metrics/{checkpoint}/similarity.parquet"),
        measures=layout.run("metrics/{checkpoint}/measures.parquet"),
        classes=layout.run("metrics/{checkpoint}/classes.parquet"),
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
        code=source_digest("averages", "measures", "similarities", "training"),
    message:
        "Similarity of the neurons of {wildcards.model} on {wildcards.dataset}, seed {wildcards.seed}"
    script:
        "../scripts/similarity.py"


rule localise_objects:
    input:
        data=layout.dataset("data.h5"),
        weights=layout.run("training/{checkpoint}.safetensors"),
        shards=[
            layout.run(f"scan/{{checkpoint}}/shard{shard}.h5")
            for shard in layout.shards()
        ],
    output:
        localisation=layout.run("metrics/{checkpoint}/localisation.parquet"),
    log:
        layout.log("localise_objects", "dataset", "model", "seed", "checkpoint"),
    benchmark:
        layout.benchmark("localise_objects", "dataset", "model", "seed", "checkpoint")
    conda:
        "../../envs/cpu.yaml"
    resources:
        mem_mb=lambda wildcards, attempt: 4000 * attempt,
        runtime=lambda wildcards, attempt: 60 * attempt,
    params:
        model=lambda wildcards: layout.model_parameters(wildcards.model),
        quantity=study.quantity.model_dump(),
        code=source_digest("evaluation", "training"),
    message:
        "Localisation by CAM, Grad-CAM and FQ of {wildcards.model} on {wildcards.dataset}, seed {wildcards.seed}"
    script:
        "../scripts/localise_objects.py"
