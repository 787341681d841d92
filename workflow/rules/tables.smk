rule render_tables:
    input:
        [file for run in layout.runs() for file in layout.run_files(run)],
        published=local(
            expand(f"{published}/{{table}}.csv", table=layout.table_names())
        ),
        claims=local(f"{published}/claims.csv"),
    output:
        report(
            expand(f"{layout.root}/tables/{{table}}.html", table=layout.table_names()),
            caption="../report/table.rst",
            category="Tables",
        ),
        [path for path in layout.tables() if not path.endswith(".html")],
        claims=report(
            f"{layout.root}/claims.csv",
            caption="../report/claims.rst",
            category="Claims",
        ),
    log:
        layout.log("render_tables"),
    benchmark:
        layout.benchmark("render_tables")
    conda:
        "../../envs/cpu.yaml"
    resources:
        mem_mb=lambda wildcards, attempt: 2000 * attempt,
        runtime=lambda wildcards, attempt: 30 * attempt,
    params:
        root=lambda wildcards, output: dirname(output.claims),
        runs=[[*run, layout.run_names(run)] for run in layout.runs()],
        of=len(layout.runs()),
        tables=layout.table_names(),
        shown=layout.shown(),
        stages={model.name: layout.stages(model.name) for model in study.models},
        code=source_digest("claims", "rendering", "tables"),
    message:
        "Rendering the tables beside the published ones, and judging the claims"
    script:
        "../scripts/render_tables.py"


use rule render_tables as render_partial_tables with:
    input:
        lambda wildcards: [
            file for run in complete_runs(layout) for file in layout.run_files(run)
        ],
        published=local(
            expand(f"{published}/{{table}}.csv", table=layout.table_names())
        ),
        claims=local(f"{published}/claims.csv"),
    output:
        [
            path.replace(layout.root, f"{layout.root}/partial", 1)
            for path in layout.tables()
        ],
        claims=f"{layout.root}/partial/claims.csv",
    log:
        layout.log("render_partial_tables"),
    benchmark:
        layout.benchmark("render_partial_tables")
    params:
        root=lambda wildcards, output: dirname(dirname(output.claims)),
        runs=lambda wildcards: [
            [*run, layout.run_names(run)] for run in complete_runs(layout)
        ],
        of=len(layout.runs()),
        tables=layout.table_names(),
        shown=layout.shown(),
        stages={model.name: layout.stages(model.name) for model in study.models},
        code=source_digest("claims", "rendering", "tables"),
    message:
        "Rendering tables of the runs that are complete"


rule draw_figures:
    input:
        data=layout.dataset("data.h5"),
        history=layout.over_seeds("training/history.csv"),
        overfitted=lambda wildcards: (
            layout.over_seeds("training/overfitted_history.csv")(wildcards)
            if "overfitted" in layout.checkpoints(wildcards.model)
            else []
        ),
        quantity=layout.over_seeds("metrics/well_trained/quantity.parquet"),
        similarity=layout.over_seeds("metrics/well_trained/similarity.parquet"),
        aipc=layout.over_seeds("experiments/aipc.parquet"),
        anomaly=lambda wildcards: [
            file
            for checkpoint in layout.checkpoints(wildcards.model)
            for file in layout.over_seeds(f"metrics/{checkpoint}/anomaly.parquet")(
                wildcards
            )
        ],
        averages=layout.first_seed("averages/averages.h5"),
        weights=layout.first_seed("training/well_trained.safetensors"),
        components=lambda wildcards: layout.first_seed(
            f"scan/{layout.checkpoints(wildcards.model)[-1]}/components.h5"
        )(wildcards),
        outliers=lambda wildcards: layout.first_seed(
            f"metrics/{layout.checkpoints(wildcards.model)[-1]}/outliers.parquet"
        )(wildcards),
    output:
        **drawn("draw_figures"),
    log:
        layout.log("draw_figures", "dataset", "model"),
    benchmark:
        layout.benchmark("draw_figures", "dataset", "model")
    conda:
        "../../envs/cpu.yaml"
    resources:
        mem_mb=lambda wildcards, attempt: 3000 * attempt,
        runtime=lambda wildcards, attempt: 30 * attempt,
    params:
        model=lambda wildcards: layout.model_parameters(wildcards.model),
        checkpoints=lambda wildcards: layout.checkpoints(wildcards.model),
        seeds=lambda wildcards: layout.seeds(wildcards.model),
        code=source_digest("galleries", "averages", "training"),
    message:
        "Drawing the figures of {wildcards.model} on {wildcards.dataset}"
    script:
        "../scripts/draw_figures.py"


rule draw_neurons:
    input:
        data=layout.dataset("data.h5"),
        weights=layout.first_seed("training/well_trained.safetensors"),
        shards=lambda wildcards: [
            layout.first_seed(f"scan/well_trained/shard{shard}.h5")(wildcards)
            for shard in layout.shards()
        ],
        knowledge=layout.over_seeds("metrics/well_trained/knowledge.parquet"),
        distances=layout.over_seeds("metrics/well_trained/distances.parquet"),
        winners=layout.over_seeds("metrics/well_trained/winners.parquet"),
        quantity=layout.over_seeds("metrics/well_trained/quantity_layers.parquet"),
        companion_weights=lambda wildcards: layout.of_companion(
            "training/well_trained.safetensors"
        )(wildcards)[:1],
        companion_knowledge=layout.of_companion(
            "metrics/well_trained/knowledge.parquet"
        ),
    output:
        **drawn("draw_neurons"),
    log:
        layout.log("draw_neurons", "dataset", "model"),
    benchmark:
        layout.benchmark("draw_neurons", "dataset", "model")
    conda:
        "../../envs/cpu.yaml"
    resources:
        mem_mb=lambda wildcards, attempt: 3000 * attempt,
        runtime=lambda wildcards, attempt: 30 * attempt,
    params:
        model=lambda wildcards: layout.model_parameters(wildcards.model),
        seeds=lambda wildcards: layout.seeds(wildcards.model),
        companion=lambda wildcards: [
            {**layout.model_parameters(model), "seeds": layout.seeds(model)}
            for model in [layout.companion(wildcards.dataset, wildcards.model)]
            if model
        ],
        code=source_digest("galleries", "tables", "training"),
    message:
        "Drawing the neurons of {wildcards.model} on {wildcards.dataset}"
    script:
        "../scripts/draw_neurons.py"


rule draw_filters:
    input:
        data=layout.dataset("data.h5"),
        weights=layout.first_seed("training/well_trained.safetensors"),
        properties=layout.first_seed("metrics/well_trained/properties.parquet"),
        losses=lambda wildcards: (
            layout.over_seeds("training/overfitted_history.csv")(wildcards)
            if wildcards.model in layout.overfitted()
            else []
        ),
        counts=lambda wildcards: (
            layout.over_seeds("metrics/anomaly_history.parquet")(wildcards)
            if wildcards.model in layout.overfitted()
            else []
        ),
    output:
        **drawn("draw_filters"),
    log:
        layout.log("draw_filters", "dataset", "model"),
    benchmark:
        layout.benchmark("draw_filters", "dataset", "model")
    conda:
        "../../envs/cpu.yaml"
    resources:
        mem_mb=lambda wildcards, attempt: 3000 * attempt,
        runtime=lambda wildcards, attempt: 30 * attempt,
    params:
        model=lambda wildcards: layout.model_parameters(wildcards.model),
        layer=study.experiments.layer,
        seeds=lambda wildcards: layout.seeds(wildcards.model),
        code=source_digest("galleries", "training"),
    message:
        "Drawing the strongest filters and the anomaly filters by epoch of {wildcards.model} on {wildcards.dataset}"
    script:
        "../scripts/draw_filters.py"


rule draw_explanations:
    input:
        data=layout.dataset("data.h5"),
        weights=layout.first_seed("training/well_trained.safetensors"),
        shards=lambda wildcards: [
            layout.first_seed(f"scan/well_trained/shard{shard}.h5")(wildcards)
            for shard in layout.shards()
        ],
        averages=layout.first_seed("averages/averages.h5"),
        classes=layout.first_seed("metrics/well_trained/classes.parquet"),
        similarity=layout.over_seeds("metrics/well_trained/similarity.parquet"),
        measures=layout.over_seeds("metrics/well_trained/measures.parquet"),
        histories=lambda wildcards: (
            layout.over_seeds("experiments/layers_histories.parquet")(wildcards)
            if layout.cuttable(wildcards.model)
            else []
        ),
    output:
        **drawn("draw_explanations"),
        page=report(
            layout.page,
            caption="../report/similarity.rst",
            category="Figures",
            subcategory="{dataset} {model}",
            labels={"figure": "Similarity by layer (interactive)"},
        ),
    log:
        layout.log("draw_explanations", "dataset", "model"),
    benchmark:
        layout.benchmark("draw_explanations", "dataset", "model")
    conda:
        "../../envs/cpu.yaml"
    resources:
        mem_mb=lambda wildcards, attempt: 3000 * attempt,
        runtime=lambda wildcards, attempt: 30 * attempt,
    params:
        model=lambda wildcards: layout.model_parameters(wildcards.model),
        quantity=study.quantity.model_dump(),
        method=study.experiments.similarity_method,
        seeds=lambda wildcards: layout.seeds(wildcards.model),
        code=source_digest("galleries", "pages", "averages", "training"),
    message:
        "Drawing explanations of {wildcards.model} on {wildcards.dataset}"
    script:
        "../scripts/draw_explanations.py"
