rule write_report:
    input:
        layout.figures(),
        list(layout.pages().values()),
        [
            file
            for run in layout.runs()
            for file in layout.run_files(run)
            if file.endswith("results.csv")
        ],
        tables=expand(f"{layout.root}/tables/{{table}}.csv", table=TABLES),
        claims=f"{layout.root}/claims.csv",
        template=f"{workflow.basedir}/src/nnscan/templates/report.html.j2",
    output:
        report=f"{layout.root}/report.html",
    log:
        layout.log("write_report"),
    benchmark:
        layout.benchmark("write_report")
    conda:
        "../../envs/cpu.yaml"
    resources:
        mem_mb=lambda wildcards, attempt: 2000 * attempt,
        runtime=lambda wildcards, attempt: 30 * attempt,
    params:
        study=study.study,
        runs=[[*run, layout.run_names(run)] for run in layout.runs()],
        tables=list(TABLES),
        figures=layout.captioned_figures(),
        pages=layout.pages(),
        code=source_digest("report"),
    message:
        "Writing the report"
    script:
        "../scripts/write_report.py"
