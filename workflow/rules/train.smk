rule train_model:
    input:
        data=layout.dataset("data.h5"),
    output:
        thirds=[layout.run(f"training/third{part}.safetensors") for part in (1, 2, 3)],
        well_trained=layout.run("training/well_trained.safetensors"),
        history=layout.run("training/history.csv"),
        results=layout.run("training/results.csv"),
    log:
        layout.log("train_model", "dataset", "model", "seed"),
    benchmark:
        layout.benchmark("train_model", "dataset", "model", "seed")
    wildcard_constraints:
        model=either(layout.trained()),
    conda:
        "../../envs/cuda.yaml"
    resources:
        gpu=gpus,
        mem_mb=lambda wildcards, attempt: 4000 * attempt,
        runtime=lambda wildcards, attempt: 240 * attempt,
    params:
        model=lambda wildcards: layout.model_parameters(wildcards.model),
        protocol=lambda wildcards: layout.protocol(wildcards.model, "regular"),
        phase="regular",
        history=0,
        code=source_digest("training"),
    message:
        "Training {wildcards.model} on {wildcards.dataset}, seed {wildcards.seed}"
    script:
        "../scripts/train_model.py"


use rule train_model as overfit_model with:
    output:
        overfitted=layout.run("training/overfitted.safetensors"),
        on_the_way=[
            layout.run(f"training/{checkpoint}.safetensors")
            for checkpoint in layout.on_the_way()
        ],
        history=layout.run("training/overfitted_history.csv"),
        results=layout.run("training/overfitted_results.csv"),
    log:
        layout.log("overfit_model", "dataset", "model", "seed"),
    benchmark:
        layout.benchmark("overfit_model", "dataset", "model", "seed")
    params:
        model=lambda wildcards: layout.model_parameters(wildcards.model),
        protocol=lambda wildcards: layout.protocol(wildcards.model, "overfitting"),
        phase="overfitting",
        history=study.anomaly.history_checkpoints,
        code=source_digest("training"),
    message:
        "Overfitting {wildcards.model} on {wildcards.dataset}, seed {wildcards.seed}"


rule adopt_model:
    input:
        data=layout.dataset("data.h5"),
        weights=lambda wildcards: study.model(wildcards.model).weights,
    output:
        well_trained=layout.run("training/well_trained.safetensors"),
        history=layout.run("training/history.csv"),
        results=layout.run("training/results.csv"),
    log:
        layout.log("adopt_model", "dataset", "model", "seed"),
    benchmark:
        layout.benchmark("adopt_model", "dataset", "model", "seed")
    wildcard_constraints:
        model=either(layout.adopted()),
    conda:
        "../../envs/cpu.yaml"
    resources:
        mem_mb=lambda wildcards, attempt: 4000 * attempt,
        runtime=lambda wildcards, attempt: 30 * attempt,
    params:
        model=lambda wildcards: layout.model_parameters(wildcards.model),
        state_dict_key=lambda wildcards: study.model(wildcards.model).state_dict_key,
        strip_prefix=lambda wildcards: study.model(wildcards.model).strip_prefix,
        code=source_digest("training"),
    message:
        "Taking over your checkpoint of {wildcards.model} for {wildcards.dataset}"
    script:
        "../scripts/adopt_model.py"


use rule train_model as shuffle_labels with:
    output:
        shuffled=layout.run("training/shuffled.safetensors"),
        history=layout.run("training/shuffled_history.csv"),
        results=layout.run("training/shuffled_results.csv"),
    log:
        layout.log("shuffle_labels", "dataset", "model", "seed"),
    benchmark:
        layout.benchmark("shuffle_labels", "dataset", "model", "seed")
    params:
        model=lambda wildcards: layout.model_parameters(wildcards.model),
        protocol=lambda wildcards: layout.protocol(wildcards.model, "shuffled"),
        phase="shuffled",
        history=0,
        code=source_digest("training"),
    message:
        "Training {wildcards.model} on {wildcards.dataset} with labels in random order, seed {wildcards.seed}"


rule initialise_model:
    input:
        data=layout.dataset("data.h5"),
    output:
        weights=layout.run("training/untrained.safetensors"),
    log:
        layout.log("initialise_model", "dataset", "model", "seed"),
    benchmark:
        layout.benchmark("initialise_model", "dataset", "model", "seed")
    wildcard_constraints:
        model=either(layout.trained()),
    conda:
        "../../envs/cpu.yaml"
    resources:
        mem_mb=lambda wildcards, attempt: 4000 * attempt,
        runtime=lambda wildcards, attempt: 30 * attempt,
    params:
        model=lambda wildcards: layout.model_parameters(wildcards.model),
        code=source_digest("training"),
    message:
        "Weights of {wildcards.model} before its training on {wildcards.dataset}, seed {wildcards.seed}"
    script:
        "../scripts/initialise_model.py"
