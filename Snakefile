# nnscan: data -> training -> averages, scan -> metrics -> experiments -> tables, figures, report.
# The stages are in workflow/rules, in the order in which the data flow; all logic is in src/nnscan.


include: "workflow/rules/common.smk"
include: "workflow/rules/data.smk"
include: "workflow/rules/train.smk"
include: "workflow/rules/averages.smk"
include: "workflow/rules/scan.smk"
include: "workflow/rules/metrics.smk"
include: "workflow/rules/experiments.smk"
include: "workflow/rules/systems.smk"
include: "workflow/rules/explainers.smk"
include: "workflow/rules/tables.smk"
include: "workflow/rules/report.smk"


rule all:
    default_target: True
    input:
        layout.tables(),
        layout.figures(),
        list(layout.pages().values()),
        f"{layout.root}/claims.csv",
        f"{layout.root}/report.html",
    localrule: True
    message:
        "All tables, figures, claims and the report are there"


onstart:
    # a job's outputs go before it starts: of data that cannot be read they had better stay
    waiting = list(workflow.dag.needrun_jobs())
    if absent := layout.without_files(
        [
            job.wildcards.dataset
            for job in waiting
            if job.rule.name == "prepare_data"
        ],
        any(job.rule.name == "label_concepts" for job in waiting),
    ):
        sys.exit("nnscan: " + "\nnnscan: ".join(absent))


onsuccess:
    cancel_clocks()
    # an earlier run may have left all outputs to a run that asked for something else
    asked = any(job.rule.name == "all" for job in workflow.dag.jobs)
    if asked and all(map(exists, rules.all.input)):
        clear(layout)
        print(f"\nnnscan: study {study.study!r} is complete.")
        print(f"  report   {layout.root}/report.html")
        print(f"  tables   {layout.root}/tables/  (csv, md, tex, html)")
        print(f"  figures  {layout.root}/figures/")
        print(f"  verdicts {layout.root}/claims.csv")
    else:
        print(f"\nnnscan: what was asked of study {study.study!r} is there.")


onerror:
    cancel_clocks()
    print(
        f"\nnnscan: study {study.study!r} did not finish. It lacks:\n{announce(layout)}"
    )
    print(
        f"  This list is in {layout.root}/missing.md, the logs are in {layout.root}/logs/."
    )
    print("  The same command goes on where it stopped.")
    print(
        "  `snakemake partial` with the same options behind it reports on the runs that are there."
    )
