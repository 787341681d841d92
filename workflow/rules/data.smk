rule prepare_data:
    output:
        data=layout.dataset("data.h5"),
    log:
        layout.log("prepare_data", "dataset"),
    benchmark:
        layout.benchmark("prepare_data", "dataset")
    conda:
        "../../envs/cpu.yaml"
    resources:
        mem_mb=lambda wildcards, attempt: 4000 * attempt,
        runtime=lambda wildcards, attempt: 30 * attempt,
    params:
        dataset=lambda wildcards: study.dataset(wildcards.dataset).model_dump(),
        files=lambda wildcards: layout.data_state(wildcards.dataset),
        code=source_digest("data"),
    message:
        "Reading data set {wildcards.dataset}, cutting its splits and masks"
    script:
        "../scripts/prepare_data.py"
