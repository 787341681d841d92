rule average_images:
    input:
        data=layout.dataset("data.h5"),
        weights=layout.run("training/well_trained.safetensors"),
    output:
        averages=layout.run("averages/averages.h5"),
    log:
        layout.log("average_images", "dataset", "model", "seed"),
    benchmark:
        layout.benchmark("average_images", "dataset", "model", "seed")
    conda:
        "../../envs/cpu.yaml"
    resources:
        mem_mb=lambda wildcards, attempt: 4000 * attempt,
        runtime=lambda wildcards, attempt: 30 * attempt,
    params:
        model=lambda wildcards: layout.model_parameters(wildcards.model),
        averages=study.averages.model_dump(),
        code=source_digest("averages", "training"),
    message:
        "Class-average images of {wildcards.dataset} for {wildcards.model}, seed {wildcards.seed}"
    script:
        "../scripts/average_images.py"
