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
        tables=expand(f"{layout.root}/tables/{{table}}.csv", table=layout.table_names()),
        claims=f"{layout.root}/claims.csv",
        template=local(f"{workflow.basedir}/src/nnscan/templates/report.html.j2"),
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
        tables=layout.table_names(),
        root=lambda wildcards, output: dirname(output.report),
        missing=[],
        figures=layout.captioned_figures(layout.networks()),
        pages=layout.pages(),
        code=source_digest("report"),
    message:
        "Writing the report"
    script:
        "../scripts/write_report.py"


use rule write_report as write_partial_report with:
    input:
        lambda wildcards: [
            image
            for _, _, image in layout.captioned_figures(complete_networks(layout))
        ],
        tables=expand(
            f"{layout.root}/partial/tables/{{table}}.csv", table=layout.table_names()
        ),
        claims=f"{layout.root}/partial/claims.csv",
        template=local(f"{workflow.basedir}/src/nnscan/templates/report.html.j2"),
    output:
        report=f"{layout.root}/partial/report.html",
    log:
        layout.log("write_partial_report"),
    benchmark:
        layout.benchmark("write_partial_report")
    params:
        study=study.study,
        runs=lambda wildcards: [
            [*run, layout.run_names(run)] for run in complete_runs(layout)
        ],
        tables=layout.table_names(),
        root=lambda wildcards, output: dirname(dirname(output.report)),
        missing=lambda wildcards: sentences(gaps(layout)),
        figures=lambda wildcards: layout.captioned_figures(complete_networks(layout)),
        pages=layout.pages(),
        code=source_digest("report"),
    message:
        "Writing the report of the runs that are complete"


rule partial:
    input:
        f"{layout.root}/partial/report.html",
    localrule: True
    message:
        "The report of the runs that are complete is there"
