rule mask_diverse_filters:
    input:
        data=layout.dataset("data.h5"),
        weights=layout.run("training/well_trained.safetensors"),
        diversity=layout.run("metrics/well_trained/diversity.parquet"),
        ablation=layout.run("metrics/well_trained/diversity_ablation.parquet"),
    output:
        masking=layout.run("experiments/diversity_masking.parquet"),
        ablation=layout.run("experiments/ablation_masking.parquet"),
    log:
        layout.log("mask_diverse_filters", "dataset", "model", "seed"),
    benchmark:
        layout.benchmark("mask_diverse_filters", "dataset", "model", "seed")
    conda:
        "../../envs/cpu.yaml"
    resources:
        mem_mb=lambda wildcards, attempt: 4000 * attempt,
        runtime=lambda wildcards, attempt: 60 * attempt,
    params:
        model=lambda wildcards: layout.model_parameters(wildcards.model),
        filters=study.experiments.diversity_filters,
        draws=study.experiments.draws,
        code=source_digest("interventions"),
    message:
        "Masking the most and the least diverse filters of {wildcards.model} on {wildcards.dataset}, seed {wildcards.seed}"
    script:
        "../scripts/mask_diverse_filters.py"


rule mask_by_properties:
    input:
        data=layout.dataset("data.h5"),
        weights=layout.run("training/well_trained.safetensors"),
        properties=layout.run("metrics/well_trained/properties.parquet"),
    output:
        aipc=layout.run("experiments/aipc.parquet"),
    log:
        layout.log("mask_by_properties", "dataset", "model", "seed"),
    benchmark:
        layout.benchmark("mask_by_properties", "dataset", "model", "seed")
    conda:
        "../../envs/cpu.yaml"
    resources:
        mem_mb=lambda wildcards, attempt: 4000 * attempt,
        runtime=lambda wildcards, attempt: 60 * attempt,
    params:
        model=lambda wildcards: layout.model_parameters(wildcards.model),
        layer=study.experiments.layer,
        steps=study.experiments.steps,
        draws=study.experiments.draws,
        code=source_digest("interventions"),
    message:
        "AIPC curves of {wildcards.model} on {wildcards.dataset}, seed {wildcards.seed}"
    script:
        "../scripts/mask_by_properties.py"


rule filter_types:
    input:
        data=layout.dataset("data.h5"),
        weights=[layout.run(f"training/third{part}.safetensors") for part in (1, 2, 3)],
    output:
        types=layout.run("experiments/filter_types.parquet"),
    log:
        layout.log("filter_types", "dataset", "model", "seed"),
    benchmark:
        layout.benchmark("filter_types", "dataset", "model", "seed")
    wildcard_constraints:
        model=either(layout.trained()),
    conda:
        "../../envs/cuda.yaml"
    resources:
        gpu=gpus,
        mem_mb=lambda wildcards, attempt: 4000 * attempt,
        runtime=lambda wildcards, attempt: 60 * attempt,
    params:
        model=lambda wildcards: layout.model_parameters(wildcards.model),
        layers=study.scan.layers,
        layer=study.experiments.layer,
        samples=study.properties.samples,
        share=study.properties.type_share,
        draws=study.experiments.draws,
        code=source_digest("interventions", "properties", "training"),
    message:
        "Filters by foreground and background of {wildcards.model} on {wildcards.dataset}, seed {wildcards.seed}"
    script:
        "../scripts/filter_types.py"


rule mask_anomalies:
    input:
        data=layout.dataset("data.h5"),
        weights=lambda wildcards: [
            layout.run(f"training/{checkpoint}.safetensors")
            for checkpoint in layout.checkpoints(wildcards.model)
        ],
        anomaly=lambda wildcards: [
            layout.run(f"metrics/{checkpoint}/anomaly.parquet")
            for checkpoint in layout.checkpoints(wildcards.model)
        ],
        outliers=lambda wildcards: [
            layout.run(f"metrics/{checkpoint}/outliers.parquet")
            for checkpoint in layout.checkpoints(wildcards.model)
        ],
    output:
        masking=layout.run("experiments/anomaly_masking.parquet"),
        single=layout.run("experiments/anomaly_single.parquet"),
        gradients=layout.run("experiments/gradients.parquet"),
    log:
        layout.log("mask_anomalies", "dataset", "model", "seed"),
    benchmark:
        layout.benchmark("mask_anomalies", "dataset", "model", "seed")
    conda:
        "../../envs/cpu.yaml"
    resources:
        mem_mb=lambda wildcards, attempt: 4000 * attempt,
        runtime=lambda wildcards, attempt: 60 * attempt,
    params:
        model=lambda wildcards: layout.model_parameters(wildcards.model),
        checkpoints=lambda wildcards: layout.checkpoints(wildcards.model),
        samples=study.anomaly.samples,
        draws=study.experiments.draws,
        code=source_digest("interventions"),
    message:
        "Masking anomaly filters of {wildcards.model} on {wildcards.dataset}, seed {wildcards.seed}; gradients of their outliers"
    script:
        "../scripts/mask_anomalies.py"


rule prune_neurons:
    input:
        data=layout.dataset("data.h5"),
        weights=layout.run("training/well_trained.safetensors"),
        similarity=layout.run("metrics/well_trained/similarity.parquet"),
    output:
        pruning=layout.run("experiments/pruning.parquet"),
    log:
        layout.log("prune_neurons", "dataset", "model", "seed"),
    benchmark:
        layout.benchmark("prune_neurons", "dataset", "model", "seed")
    conda:
        "../../envs/cpu.yaml"
    resources:
        mem_mb=lambda wildcards, attempt: 4000 * attempt,
        runtime=lambda wildcards, attempt: 60 * attempt,
    params:
        model=lambda wildcards: layout.model_parameters(wildcards.model),
        method=study.experiments.similarity_method,
        fraction=study.experiments.prune_fraction,
        draws=study.experiments.draws,
        code=source_digest("interventions", "similarities"),
    message:
        "Pruning the most and the least similar neurons of {wildcards.model} on {wildcards.dataset}, seed {wildcards.seed}"
    script:
        "../scripts/prune_neurons.py"


rule remove_layers:
    input:
        data=layout.dataset("data.h5"),
        similarity=layout.run("metrics/well_trained/similarity.parquet"),
        results=layout.run("training/results.csv"),
    output:
        layers=layout.run("experiments/layers.parquet"),
        histories=layout.run("experiments/layers_histories.parquet"),
    log:
        layout.log("remove_layers", "dataset", "model", "seed"),
    benchmark:
        layout.benchmark("remove_layers", "dataset", "model", "seed")
    conda:
        "../../envs/cuda.yaml"
    resources:
        gpu=gpus,
        mem_mb=lambda wildcards, attempt: 4000 * attempt,
        runtime=lambda wildcards, attempt: 480 * attempt,
    params:
        model=lambda wildcards: layout.model_parameters(wildcards.model),
        protocol=lambda wildcards: layout.protocol(wildcards.model, "regular"),
        method=study.experiments.similarity_method,
        convolutions=lambda wildcards: CUTTABLE[study.model(wildcards.model).source],
        code=source_digest("interventions", "similarities"),
    message:
        "Retraining {wildcards.model} on {wildcards.dataset} with fewer layers, seed {wildcards.seed}"
    script:
        "../scripts/remove_layers.py"
