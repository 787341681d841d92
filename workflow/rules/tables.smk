rule render_tables:
    input:
        [file for run in layout.runs() for file in layout.run_files(run)],
        published=expand(f"{published}/{{table}}.csv", table=TABLES),
        claims=f"{published}/claims.csv",
    output:
        report(
            expand(f"{layout.root}/tables/{{table}}.html", table=TABLES),
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
        runs=[[*run, layout.run_names(run)] for run in layout.runs()],
        tables=list(TABLES),
        code=source_digest("claims", "rendering", "tables"),
    message:
        "Rendering the tables beside the published ones, and judging the claims"
    script:
        "../scripts/render_tables.py"


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
        **{
            name: report(
                f"{layout.root}/figures/{{dataset}}/{{model}}/{name}.png",
                caption=f"../report/{name}.rst",
                category="Figures",
                subcategory="{dataset} {model}",
                labels={"figure": title},
            )
            for name, title in layout.figures_of("draw_figures").items()
        },
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
