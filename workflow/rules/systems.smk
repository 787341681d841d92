rule label_concepts:
    output:
        concepts=directory(f"{layout.root}/concepts"),
    log:
        layout.log("label_concepts"),
    benchmark:
        layout.benchmark("label_concepts")
    conda:
        "../../envs/cpu.yaml"
    resources:
        mem_mb=lambda wildcards, attempt: 2000 * attempt,
        runtime=lambda wildcards, attempt: 60 * attempt,
    params:
        settings=study.dissection.model_dump(include={"root", "side", "tile"}),
        state=layout.concepts_state(),
        code=source_digest("broden"),
    message:
        "Labelled images for Network Dissection"
    script:
        "../scripts/label_concepts.py"


rule dissect_network:
    input:
        data=layout.dataset("data.h5"),
        concepts=layout.concepts,
        weights=layout.run("training/{checkpoint}.safetensors"),
    output:
        units=layout.run("metrics/{checkpoint}/units.parquet"),
        exemplars=layout.run("metrics/{checkpoint}/exemplars.parquet"),
        detectors=layout.run("metrics/{checkpoint}/detectors.parquet"),
    log:
        layout.log("dissect_network", "dataset", "model", "seed", "checkpoint"),
    benchmark:
        layout.benchmark("dissect_network", "dataset", "model", "seed", "checkpoint")
    conda:
        "../../envs/cuda.yaml"
    resources:
        gpu=gpus,
        mem_mb=lambda wildcards, attempt: 4000 * attempt,
        runtime=lambda wildcards, attempt: 120 * attempt,
    params:
        model=lambda wildcards: layout.model_parameters(wildcards.model),
        dissection=study.dissection.model_dump(
            exclude={"concepts", "root", "side", "tile", "rotations"}
        ),
        state=layout.concepts_state(),
        code=source_digest("dissection", "training"),
    message:
        "Dissecting {wildcards.model} on {wildcards.dataset}, seed {wildcards.seed}, {wildcards.checkpoint}"
    script:
        "../scripts/dissect_network.py"


rule rotate_units:
    input:
        data=layout.dataset("data.h5"),
        concepts=layout.concepts,
        weights=layout.run("training/well_trained.safetensors"),
    output:
        rotations=layout.run("experiments/rotations.parquet"),
    log:
        layout.log("rotate_units", "dataset", "model", "seed"),
    benchmark:
        layout.benchmark("rotate_units", "dataset", "model", "seed")
    conda:
        "../../envs/cuda.yaml"
    resources:
        gpu=gpus,
        mem_mb=lambda wildcards, attempt: 4000 * attempt,
        runtime=lambda wildcards, attempt: 120 * attempt,
    params:
        model=lambda wildcards: layout.model_parameters(wildcards.model),
        dissection=study.dissection.model_dump(
            exclude={"concepts", "root", "side", "tile"}
        ),
        state=layout.concepts_state(),
        code=source_digest("dissection", "training"),
    message:
        "Rotating the units of {wildcards.model} on {wildcards.dataset}, seed {wildcards.seed}"
    script:
        "../scripts/rotate_units.py"


rule measure_dimension:
    input:
        data=layout.dataset("data.h5"),
        weights=layout.run("training/{checkpoint}.safetensors"),
    output:
        dimension=layout.run("metrics/{checkpoint}/dimension.parquet"),
        blocks=layout.run("metrics/{checkpoint}/dimension_blocks.parquet"),
    log:
        layout.log("measure_dimension", "dataset", "model", "seed", "checkpoint"),
    benchmark:
        layout.benchmark("measure_dimension", "dataset", "model", "seed", "checkpoint")
    conda:
        "../../envs/cpu.yaml"
    resources:
        mem_mb=lambda wildcards, attempt: 6000 * attempt,
        runtime=lambda wildcards, attempt: 120 * attempt,
    params:
        model=lambda wildcards: layout.model_parameters(wildcards.model),
        dimension=study.dimension.model_dump(),
        code=source_digest("dimension", "training"),
    message:
        "Intrinsic dimension in {wildcards.model} on {wildcards.dataset}, seed {wildcards.seed}, {wildcards.checkpoint}"
    script:
        "../scripts/measure_dimension.py"


rule train_prototypes:
    input:
        data=layout.dataset("data.h5"),
        weights=layout.run("training/well_trained.safetensors"),
    output:
        weights=layout.run("training/prototypes.safetensors"),
        prototypes=layout.run("training/prototypes.csv"),
        distinct=layout.run("training/prototypes_distinct.csv"),
        history=layout.run("training/prototypes_history.csv"),
        results=layout.run("training/prototypes_results.csv"),
    log:
        layout.log("train_prototypes", "dataset", "model", "seed"),
    benchmark:
        layout.benchmark("train_prototypes", "dataset", "model", "seed")
    conda:
        "../../envs/cuda.yaml"
    resources:
        gpu=gpus,
        mem_mb=lambda wildcards, attempt: 4000 * attempt,
        runtime=lambda wildcards, attempt: 240 * attempt,
    params:
        model=lambda wildcards: layout.model_parameters(wildcards.model),
        prototypes=study.prototypes.model_dump(),
        augmentation=lambda wildcards: study.training_of(wildcards.model).augmentation,
        code=source_digest("prototypes", "training"),
    message:
        "ProtoPNet on {wildcards.model} on {wildcards.dataset}, seed {wildcards.seed}"
    script:
        "../scripts/train_prototypes.py"


rule draw_units:
    input:
        data=layout.dataset("data.h5"),
        concepts=layout.concepts,
        weights=layout.first_seed("training/well_trained.safetensors"),
        units=layout.first_seed("metrics/well_trained/units.parquet"),
        exemplars=layout.first_seed("metrics/well_trained/exemplars.parquet"),
        detectors=lambda wildcards: [
            file
            for checkpoint in layout.dissected(wildcards.model)
            for file in layout.over_seeds(f"metrics/{checkpoint}/detectors.parquet")(
                wildcards
            )
        ],
        rotations=layout.over_seeds("experiments/rotations.parquet"),
    output:
        **drawn("draw_units"),
    log:
        layout.log("draw_units", "dataset", "model"),
    benchmark:
        layout.benchmark("draw_units", "dataset", "model")
    conda:
        "../../envs/cpu.yaml"
    resources:
        mem_mb=lambda wildcards, attempt: 3000 * attempt,
        runtime=lambda wildcards, attempt: 30 * attempt,
    params:
        model=lambda wildcards: layout.model_parameters(wildcards.model),
        checkpoints=lambda wildcards: layout.dissected(wildcards.model),
        seeds=lambda wildcards: layout.seeds(wildcards.model),
        size=study.dissection.size,
        upsampling=study.dissection.upsampling,
        code=source_digest("exhibits", "drawings", "training"),
    message:
        "Drawing what the units of {wildcards.model} on {wildcards.dataset} detect"
    script:
        "../scripts/draw_units.py"


rule draw_dimension:
    input:
        dimensions=lambda wildcards: [
            file
            for checkpoint in layout.measured(wildcards.model)
            for file in layout.over_seeds(f"metrics/{checkpoint}/dimension.parquet")(
                wildcards
            )
        ],
        blocks=layout.first_seed("metrics/well_trained/dimension_blocks.parquet"),
        every_dimension=lambda wildcards: [
            layout.run("metrics/well_trained/dimension.parquet").format(
                **run._asdict()
            )
            for run in layout.runs_on(wildcards.dataset, "dimension")
        ],
        every_result=lambda wildcards: [
            layout.run("training/results.csv").format(**run._asdict())
            for run in layout.runs_on(wildcards.dataset, "dimension")
        ],
    output:
        **drawn("draw_dimension"),
    log:
        layout.log("draw_dimension", "dataset", "model"),
    benchmark:
        layout.benchmark("draw_dimension", "dataset", "model")
    conda:
        "../../envs/cpu.yaml"
    resources:
        mem_mb=lambda wildcards, attempt: 2000 * attempt,
        runtime=lambda wildcards, attempt: 30 * attempt,
    params:
        checkpoints=lambda wildcards: layout.measured(wildcards.model),
        seeds=lambda wildcards: layout.seeds(wildcards.model),
        networks=lambda wildcards: [
            run.model for run in layout.runs_on(wildcards.dataset, "dimension")
        ],
        code=source_digest("correlation", "drawings", "systems"),
    message:
        "Drawing the intrinsic dimension of {wildcards.model} on {wildcards.dataset}"
    script:
        "../scripts/draw_dimension.py"


rule draw_prototypes:
    input:
        data=layout.dataset("data.h5"),
        weights=layout.first_seed("training/prototypes.safetensors"),
        prototypes=layout.first_seed("training/prototypes.csv"),
    output:
        **drawn("draw_prototypes"),
    log:
        layout.log("draw_prototypes", "dataset", "model"),
    benchmark:
        layout.benchmark("draw_prototypes", "dataset", "model")
    conda:
        "../../envs/cpu.yaml"
    resources:
        mem_mb=lambda wildcards, attempt: 3000 * attempt,
        runtime=lambda wildcards, attempt: 30 * attempt,
    params:
        model=lambda wildcards: layout.model_parameters(wildcards.model),
        code=source_digest("exhibits", "drawings", "training"),
    message:
        "Drawing the prototypes of {wildcards.model} on {wildcards.dataset}"
    script:
        "../scripts/draw_prototypes.py"
