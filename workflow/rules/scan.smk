rule scan_neurons:
    input:
        data=layout.dataset("data.h5"),
        weights=layout.run("training/{checkpoint}.safetensors"),
    output:
        scan=layout.run("scan/{checkpoint}/shard{shard}.h5"),
    log:
        layout.log("scan_neurons", "dataset", "model", "seed", "checkpoint", "shard"),
    benchmark:
        layout.benchmark(
            "scan_neurons", "dataset", "model", "seed", "checkpoint", "shard"
        )
    conda:
        "../../envs/cuda.yaml"
    resources:
        gpu=gpus,
        mem_mb=lambda wildcards, attempt: 6000 * attempt,
        runtime=lambda wildcards, attempt: 240 * attempt,
    params:
        model=lambda wildcards: layout.model_parameters(wildcards.model),
        scan=lambda wildcards: study.scan_of(wildcards.model).model_dump(
            exclude={"shards"}
        ),
        shards=len(layout.shards()),
        code=source_digest("scanner", "training"),
    message:
        "Scanning every neuron of {wildcards.model} on {wildcards.dataset}, seed {wildcards.seed}, shard {wildcards.shard}"
    script:
        "../scripts/scan_neurons.py"


rule project_filters:
    input:
        data=layout.dataset("data.h5"),
        weights=[
            layout.run(f"training/{checkpoint}.safetensors")
            for checkpoint in CHECKPOINTS
        ],
    output:
        components=[
            layout.run(f"scan/{checkpoint}/components.h5")
            for checkpoint in CHECKPOINTS
        ],
    log:
        layout.log("project_filters", "dataset", "model", "seed"),
    benchmark:
        layout.benchmark("project_filters", "dataset", "model", "seed")
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
        anomaly=study.anomaly.model_dump(include={"source", "samples"}),
        layers=study.scan.layers,
        code=source_digest("components", "scanner", "training"),
    message:
        "Filter images of {wildcards.model} on {wildcards.dataset}, seed {wildcards.seed}, as points"
    script:
        "../scripts/project_filters.py"


use rule project_filters as project_filters_of_one_checkpoint with:
    input:
        data=layout.dataset("data.h5"),
        weights=[layout.run("training/well_trained.safetensors")],
    output:
        components=[layout.run("scan/well_trained/components.h5")],
    wildcard_constraints:
        model=either(layout.never_overfitted()),
