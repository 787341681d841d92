rule train_infiller:
    input:
        data=layout.dataset("data.h5"),
    output:
        weights=layout.dataset("infiller/infiller.safetensors"),
        history=layout.dataset("infiller/infiller_history.csv"),
        results=layout.dataset("infiller/infiller_results.csv"),
    log:
        layout.log("train_infiller", "dataset"),
    benchmark:
        layout.benchmark("train_infiller", "dataset")
    conda:
        "../../envs/cuda.yaml"
    resources:
        gpu=gpus,
        mem_mb=lambda wildcards, attempt: 4000 * attempt,
        runtime=lambda wildcards, attempt: 120 * attempt,
    params:
        steps=study.explainers.infiller_steps,
        code=source_digest("infilling"),
    message:
        "Training the network that fills hidden pixels of {wildcards.dataset}"
    script:
        "../scripts/train_infiller.py"


rule train_generator:
    input:
        data=layout.dataset("data.h5"),
        weights=layout.run("training/well_trained.safetensors"),
    output:
        weights=layout.run("training/generator.safetensors"),
        history=layout.run("training/generator_history.csv"),
        results=layout.run("training/generator_results.csv"),
    log:
        layout.log("train_generator", "dataset", "model", "seed"),
    benchmark:
        layout.benchmark("train_generator", "dataset", "model", "seed")
    conda:
        "../../envs/cuda.yaml"
    resources:
        gpu=gpus,
        mem_mb=lambda wildcards, attempt: 4000 * attempt,
        runtime=lambda wildcards, attempt: 120 * attempt,
    params:
        model=lambda wildcards: layout.model_parameters(wildcards.model),
        steps=study.explainers.generator_steps,
        code=source_digest("maximisation", "training"),
    message:
        "Training a generator of images for {wildcards.model} on {wildcards.dataset}, seed {wildcards.seed}"
    script:
        "../scripts/train_generator.py"


rule explain_inputs:
    input:
        data=layout.dataset("data.h5"),
        weights=layout.run("training/well_trained.safetensors"),
        shards=[
            layout.run(f"scan/well_trained/shard{shard}.h5")
            for shard in layout.shards()
        ],
        infiller=layout.infillers,
    output:
        atlas=layout.run("explainers/atlas.h5"),
    log:
        layout.log("explain_inputs", "dataset", "model", "seed"),
    benchmark:
        layout.benchmark("explain_inputs", "dataset", "model", "seed")
    conda:
        "../../envs/cuda.yaml"
    resources:
        gpu=gpus,
        mem_mb=lambda wildcards, attempt: 4000 * attempt,
        runtime=lambda wildcards, attempt: 240 * attempt,
    params:
        model=lambda wildcards: layout.model_parameters(wildcards.model),
        methods=lambda wildcards: study.methods_of(wildcards.model),
        samples=study.explainers.samples,
        quantity=study.quantity.model_dump(),
        code=source_digest("explainers", "atlas", "training"),
    message:
        "Explaining what {wildcards.model} answers on {wildcards.dataset}, seed {wildcards.seed}"
    script:
        "../scripts/explain_inputs.py"


rule evaluate_explainers:
    input:
        data=layout.dataset("data.h5"),
        weights=layout.run("training/well_trained.safetensors"),
        shards=[
            layout.run(f"scan/well_trained/shard{shard}.h5")
            for shard in layout.shards()
        ],
        infiller=layout.infillers,
        shuffled=layout.shuffled_of,
        atlas=layout.run("explainers/atlas.h5"),
    output:
        scores=layout.run("explainers/{question}.parquet"),
    log:
        layout.log("evaluate_explainers", "dataset", "model", "seed", "question"),
    benchmark:
        layout.benchmark("evaluate_explainers", "dataset", "model", "seed", "question")
    wildcard_constraints:
        question=either(QUESTIONS),
    conda:
        "../../envs/cuda.yaml"
    resources:
        gpu=gpus,
        mem_mb=lambda wildcards, attempt: 4000 * attempt,
        runtime=lambda wildcards, attempt: 240 * attempt,
    params:
        model=lambda wildcards: layout.model_parameters(wildcards.model),
        methods=lambda wildcards: study.methods_of(wildcards.model),
        judged=study.explainers.judged,
        quantity=study.quantity.model_dump(),
        code=source_digest("explainers", "evaluation", "training"),
    message:
        "Evaluating explanations of {wildcards.model} on {wildcards.dataset}, seed {wildcards.seed}: {wildcards.question}"
    script:
        "../scripts/evaluate_explainers.py"


rule maximise_activations:
    input:
        data=layout.dataset("data.h5"),
        weights=layout.run("training/well_trained.safetensors"),
        judges=layout.judges,
        generator=layout.generators,
    output:
        images=layout.run("explainers/images.h5"),
        scores=layout.run("explainers/images.parquet"),
    log:
        layout.log("maximise_activations", "dataset", "model", "seed"),
    benchmark:
        layout.benchmark("maximise_activations", "dataset", "model", "seed")
    conda:
        "../../envs/cuda.yaml"
    resources:
        gpu=gpus,
        mem_mb=lambda wildcards, attempt: 4000 * attempt,
        runtime=lambda wildcards, attempt: 120 * attempt,
    params:
        model=lambda wildcards: layout.model_parameters(wildcards.model),
        methods=lambda wildcards: study.methods_of(wildcards.model),
        code=source_digest("explainers", "atlas", "costs", "training"),
    message:
        "Images that {wildcards.model} on {wildcards.dataset} answers most strongly, seed {wildcards.seed}"
    script:
        "../scripts/maximise_activations.py"


rule retrain_without_pixels:
    input:
        data=layout.dataset("data.h5"),
        weights=layout.run("training/well_trained.safetensors"),
        infiller=layout.retraining_infillers,
    output:
        scores=layout.run("explainers/retraining.parquet"),
    log:
        layout.log("retrain_without_pixels", "dataset", "model", "seed"),
    benchmark:
        layout.benchmark("retrain_without_pixels", "dataset", "model", "seed")
    conda:
        "../../envs/cuda.yaml"
    resources:
        gpu=gpus,
        mem_mb=lambda wildcards, attempt: 6000 * attempt,
        runtime=lambda wildcards, attempt: 480 * attempt,
    params:
        model=lambda wildcards: layout.model_parameters(wildcards.model),
        methods=study.retrained,
        epochs=study.explainers.retrained_epochs,
        protocol=lambda wildcards: layout.protocol(wildcards.model, "regular"),
        code=source_digest("atlas", "explainers", "faithfulness", "training"),
    message:
        "Retraining {wildcards.model} on {wildcards.dataset} without the pixels that explanations point at, seed {wildcards.seed}"
    script:
        "../scripts/retrain_without_pixels.py"


rule draw_explainers:
    input:
        data=layout.dataset("data.h5"),
        atlas=layout.first_seed("explainers/atlas.h5"),
        images=layout.first_seed("explainers/images.h5"),
        judged=layout.first_seed("explainers/images.parquet"),
        scores=lambda wildcards: [
            file
            for question in QUESTIONS
            for file in layout.over_seeds(f"explainers/{question}.parquet")(wildcards)
        ],
    output:
        **drawn("draw_explainers"),
    log:
        layout.log("draw_explainers", "dataset", "model"),
    benchmark:
        layout.benchmark("draw_explainers", "dataset", "model")
    conda:
        "../../envs/cpu.yaml"
    resources:
        mem_mb=lambda wildcards, attempt: 3000 * attempt,
        runtime=lambda wildcards, attempt: 30 * attempt,
    params:
        code=source_digest("exhibits", "sheets", "rankings", "atlas", "explainers"),
    message:
        "Drawing what methods of explanation show of {wildcards.model} on {wildcards.dataset}"
    script:
        "../scripts/draw_explainers.py"


rule draw_retraining:
    input:
        scores=layout.over_seeds("explainers/retraining.parquet"),
    output:
        **drawn("draw_retraining"),
    log:
        layout.log("draw_retraining", "dataset", "model"),
    benchmark:
        layout.benchmark("draw_retraining", "dataset", "model")
    conda:
        "../../envs/cpu.yaml"
    resources:
        mem_mb=lambda wildcards, attempt: 2000 * attempt,
        runtime=lambda wildcards, attempt: 30 * attempt,
    params:
        seeds=lambda wildcards: layout.seeds(wildcards.model),
        code=source_digest("sheets", "explainers"),
    message:
        "Drawing the accuracy of {wildcards.model} on {wildcards.dataset} after retraining without pixels"
    script:
        "../scripts/draw_retraining.py"


rule draw_ranking:
    input:
        scores=f"{layout.root}/tables/explainers_scores.csv",
        template=local(f"{workflow.basedir}/src/nnscan/templates/explainers.html.j2"),
    output:
        page=report(
            layout.ranking,
            caption="../report/ranking.rst",
            category="Figures",
            labels={"figure": "Ranking of the methods of explanation"},
        ),
    log:
        layout.log("draw_ranking"),
    benchmark:
        layout.benchmark("draw_ranking")
    conda:
        "../../envs/cpu.yaml"
    resources:
        mem_mb=lambda wildcards, attempt: 2000 * attempt,
        runtime=lambda wildcards, attempt: 30 * attempt,
    params:
        study=study.study,
        links=layout.ranking_links(),
        code=source_digest("pages", "rankings", "evaluation", "survey", "rendering"),
    message:
        "Ranking the methods of explanation"
    script:
        "../scripts/draw_ranking.py"
