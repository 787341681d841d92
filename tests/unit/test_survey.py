"""Tables and statistics of methods of explanation, on small run folders whose numbers are known by hand."""

import csv
import math

import pandas as pd
import pytest

from nnscan import survey
from nnscan.claims import evaluate_claims, read_claims
from nnscan.configuration import CONTROLS
from nnscan.contents import CONTENTS, TABLES
from nnscan.explainers import METHODS
from nnscan.rankings import FILES, IMAGES, MEASURES, RETRAINING
from nnscan.rendering import read_csv, readable, render
from nnscan.tables import MISSING, STATEMENTS, NotAsked, UndefinedStatistic, read_published
from result_files import fill, make_runs, pick, put_pictures, put_retrained, put_scores, put_shuffled_accuracy

NAN = math.nan
CAM_REFUSES = "CAM needs global pooling"


def put_all(run, shift=0.0):
    """Write scores of a few methods: one gradient, one that refuses, one that promises a sum, controls; and images."""
    methods = ("vanilla_gradient", "integrated_gradients", "grad_cam", *CONTROLS)
    put_scores(
        run,
        "localisation",
        {
            **{(name, "iou", case): [0.2 + shift, 0.4 + shift] for name in methods for case in ("0.5", "0.2")},
            **{(name, "pointing", ""): [1, 0] for name in methods},
            **{(name, "energy", ""): [0.5, 0.7] for name in methods if name != "grad_cam"},
            ("grad_cam", "energy", ""): [0.6, NAN],
            **{("cam", metric, ""): [NAN, NAN] for metric in ("iou", "pointing", "energy")},
        },
        CAM_REFUSES,
    )
    put_scores(
        run,
        "faithfulness",
        {
            **{(name, metric, ""): [0.3, 0.1] for name in methods for metric in ("deletion", "insertion", "roughness")},
            ("integrated_gradients", "residual", ""): [0.01, 0.03],
            **{("cam", metric, ""): [NAN, NAN] for metric in ("deletion", "insertion", "roughness")},
        },
        CAM_REFUSES,
    )
    put_scores(run, "cost", {(name, metric, ""): [0.5, 1.5] for name in methods for metric in ("seconds", "megabytes")})
    put_pictures(
        run,
        {"validation": [(0.9, 1, 0.1), (0.7, 1, 0.1)], "activation_maximisation": [(1.0, NAN, 0.5), (0.8, NAN, 0.7)]},
        {"dgn_am": "there is no generator"},
    )


@pytest.fixture
def runs(tmp_path):
    found = make_runs(tmp_path, "lenet5", seeds=(0, 1))
    for run in found:
        put_all(run, 0.2 * run.seed)
    return found


def of(frame, method, quantity, **keys):
    return pick(frame, method=method, quantity=quantity, **keys)


# ----------------------------------------------------------------------------------------- what the survey prints


def test_published_words_are_of_methods_and_facts(published):
    for number, facts in ((1, STATEMENTS[:2]), (2, STATEMENTS[2:5]), (3, survey.FACTS)):
        frame = read_published(published, f"survey_{number}")
        assert set(frame["method"]) <= set(METHODS)
        assert set(frame["quantity"]) <= set(facts)
        assert not frame.duplicated(["method", "quantity"]).any()
        assert (frame[["statement", "printed", "source"]] != "").all(axis=None)
        assert set(frame["table"]) == {f"survey_{number}"}
    assert set(STATEMENTS[5:]) == set(survey.FACTS)


PRINTED = {  # of table 3: year, detail, online, access, what is explained, scope
    "rise": ("2014, 2018", "regional", "offline", "agnostic", "output class", "local"),
    "generative_infilling": ("2019", "regional", "offline", "transparent", "output class", "local"),
    "vanilla_gradient": ("2010, 2013", "fine-grained", "offline", "transparent", "output class", "local"),
    "deconvolution": ("2013", "fine-grained", "offline", "transparent", "neuron or layer", "local"),
    "lrp_z_plus": ("2015", "fine-grained", "offline", "transparent", "output class", "local"),
    "cam": ("2015", "regional", "online", "transparent", "output class", "local"),
    "dgn_am": ("2016", "fine-grained", "offline", "transparent", "neuron or output class", "global"),
    "channel_attention": ("2017", "regional", "online", "transparent", None, "local"),
    "class_attention": (None, "regional", "online", "transparent", None, None),
    "shap": ("2017", "fine-grained", "offline", "agnostic", "output class", "local"),
}


@pytest.mark.parametrize("method", PRINTED)
def test_published_table_3(published, method):
    frame = read_published(published, "survey_3")
    own = frame[frame["method"] == method].set_index("quantity")["statement"]
    facts = ("year", "detail", "online", "access to the model", "explains", "scope")
    assert tuple(own.get(fact) for fact in facts) == PRINTED[method]


def test_published_tables_are_whole(published):
    rows = {number: read_published(published, f"survey_{number}") for number in (1, 2, 3)}
    assert [rows[number]["method"].nunique() for number in (1, 2, 3)] == [5, 4, 27]
    assert [len(rows[number]) for number in (1, 2)] == [10, 12]
    own = {name for name, method in METHODS.items() if method.family not in ("nnscan", "control")}
    assert own - set(rows[3]["method"]) == {"extremal_perturbation"}


@pytest.mark.parametrize("table", ["explainers_scores", "explainers_retraining"])
def test_no_source_prints_scores(published, table):
    assert read_published(published, table).empty


def test_the_register_and_the_survey_differ_in_words_of_few_methods(published):
    differing = set()
    for row in read_published(published, "survey_3").to_dict("records"):
        ours = survey.facts_of(METHODS[row["method"]])[row["quantity"]]
        if not survey.agrees(row["quantity"], ours, row["statement"]):
            differing.add((row["method"], row["quantity"]))
    assert differing == {
        ("activation_maximisation", "detail"), ("dgn_am", "detail"), ("lime", "family"), ("shap", "family"),
    }  # fmt: skip


# ----------------------------------------------------------------------------------------- tables


def test_scores_are_means_over_images_then_seeds(runs, published):
    frame = fill("explainers_scores", runs, published)
    row = of(frame, "Gradient (VBP)", "IoU at 0.5")
    assert row["ours"] == pytest.approx(0.4)
    assert row["spread"] == pytest.approx(math.sqrt(2) / 10)
    assert (row["seeds"], row["unit"], row["note"]) == (2, "1", "")
    half = 12.706204736432095 * math.sqrt(2) / 10 / math.sqrt(2)  # Student's t, one degree of freedom
    assert (row["ci_low"], row["ci_high"]) == (pytest.approx(0.4 - half), pytest.approx(0.4 + half))
    partly = of(frame, "Grad-CAM", "energy inside the object")
    assert partly["ours"] == pytest.approx(0.6)
    assert partly["note"] == f"2 of 4 images have no value: {CAM_REFUSES}"
    refused = of(frame, "CAM", "IoU at 0.5")
    assert math.isnan(refused["ours"])
    assert (refused["note"], refused["seeds"]) == (CAM_REFUSES, 0)
    assert of(frame, "Integrated gradients", "residual")["ours"] == pytest.approx(0.02)
    assert of(frame, "Grad-CAM", "residual")["note"] == "the method promises no sum"
    assert of(frame, "AM", "probability of the class")["ours"] == pytest.approx(0.9)
    assert of(frame, "AM", "agreement of the judges")["note"] == "no network of another seed judges them"
    assert of(frame, "DGN-AM", "probability of the class")["note"] == "there is no generator"
    assert "makes images of classes" in of(frame, "AM", "deletion")["note"]
    assert (of(frame, "AM", "time per image")["ours"], of(frame, "AM", "time per image")["unit"]) == (2, "s")
    assert of(frame, "AM", "memory per image")["note"] == "the memory of a process cannot be told on this system"
    assert of(frame, "DGN-AM", "time per image")["note"] == "there is no generator"
    assert of(frame, "validation images", "time per image")["note"] == "real images: they explain nothing"
    assert of(frame, "Grad-CAM", "distance to training images")["note"] == "the method makes no images"
    assert of(frame, "validation images", "deletion")["note"] == "real images: they explain nothing"
    assert "explainers/sanity.parquet is missing" in of(frame, "Grad-CAM", "random network, rank")["note"]


def test_a_seed_that_lacks_a_value_is_named(tmp_path, published):
    runs = make_runs(tmp_path, "lenet5", seeds=(0, 1))
    for run in runs:
        put_scores(run, "faithfulness", {("grad_cam", "deletion", ""): [NAN if run.seed else 0.5]}, "why")
    row = of(fill("explainers_scores", runs, published), "Grad-CAM", "deletion")
    assert (row["ours"], row["seeds"], row["note"]) == (0.5, 1, "seed 1: why")
    assert math.isnan(row["ci_low"])


def test_every_method_has_one_row_of_every_score_in_the_register_s_order(runs, published):
    frame = fill("explainers_scores", runs, published)
    frame = frame[frame["quantity"] != MISSING]
    each = frame.groupby("method", sort=False)["quantity"].agg(list)
    quantities = [*(measure.quantity for measure in MEASURES), *survey.PICTURES]
    assert all(sorted(own) == sorted(quantities) for own in each)
    assert each.index.tolist() == [
        "Gradient (VBP)", "Integrated gradients", "CAM", "Grad-CAM", "AM", "DGN-AM", "random (control)",
        "edges (control)", "input (control)", "validation images",
    ]  # fmt: skip


def test_table_3_holds_all_methods_with_words_and_numbers(runs, published):
    frame = fill("survey_3", runs, published)
    row = of(frame, "CAM", "online")
    assert (row["statement"], row["survey"], row["note"]) == ("online", "online", "")
    row = of(frame, "AM", "detail")
    assert (row["statement"], row["survey"]) == ("image of a class", "fine-grained")
    assert row["note"] == "the survey prints “fine-grained”"
    row = of(frame, "Gradient (VBP)", "year")
    assert (row["statement"], row["survey"], row["note"]) == ("2013", "2010, 2013", "")
    assert of(frame, "random (control)", "family")["survey"] == ""
    assert of(frame, "CAM", "needs")["statement"].startswith("global average pooling")
    assert of(frame, "Gradient (VBP)", "paper")["statement"] == METHODS["vanilla_gradient"].paper
    assert of(frame, "CAM", "deletion")["note"] == CAM_REFUSES
    (unasked,) = (note for note in frame["note"] if note.startswith("not asked for"))
    shown = set(frame["method"]) - {"", "validation images"}
    named = unasked.removeprefix("not asked for: ").split(", ")
    assert shown | set(named) == {survey.title_of(method) for method in METHODS.values()}
    assert not shown & set(named)


@pytest.mark.parametrize(("table", "own"), [("survey_1", "Gradient (VBP)"), ("survey_2", "Grad-CAM")])
def test_tables_1_and_2_show_their_methods_and_the_controls(runs, published, table, own):
    frame = fill(table, runs, published)
    assert {own, "random (control)", "edges (control)", "input (control)"} <= set(frame["method"])
    assert ("CAM" in set(frame["method"])) == (table == "survey_2")
    assert not {"AM", "validation images"} & set(frame["method"])
    assert of(frame, own, "paper")["statement"]
    fact = {"survey_1": "traits", "survey_2": "drawbacks"}[table]
    assert of(frame, own, fact)["survey"] in set(read_published(published, table)["statement"])


def test_retraining_by_share(tmp_path, published):
    runs = make_runs(tmp_path, "lenet5", seeds=(0, 1))
    for run in runs:
        put_retrained(run, {"random": {0: 0.9, 0.5: 0.6 + 0.1 * run.seed}, "cam": {0: NAN, 0.5: NAN}})
    frame = fill("explainers_retraining", runs, published)
    row = pick(frame, method="random (control)", removed="50 %")
    assert (row["ours"], row["unit"], row["seeds"]) == (pytest.approx(65), "%", 2)
    assert pick(frame, method="CAM", removed="0 %")["note"] == "refused"
    view = readable(frame, TABLES["explainers_retraining"])
    assert view.frame.columns.tolist() == ["data", "model", "method", "0 %", "50 %"]


@pytest.mark.parametrize("table", sorted(survey.TABLES))
def test_a_study_without_any_file_says_which(tmp_path, published, table):
    run = make_runs(tmp_path, "lenet5", seeds=(0,))[0]
    own = TABLES[table]
    notes = " ".join(own.function([run], read_published(published, table))["note"])
    assert all(f"{path} is missing" in notes for path in own.inputs)
    assert set(own.inputs) <= {*FILES.values(), IMAGES, RETRAINING}


@pytest.mark.parametrize("table", ["survey_1", "survey_3", "explainers_scores"])
def test_tables_are_rendered_and_read_back(runs, published, tmp_path, table):
    frame = fill(table, runs, published)
    paths = render(frame, TABLES[table], tmp_path / "tables")
    pd.testing.assert_frame_equal(read_csv(paths["csv"]), frame, rtol=1e-5)
    tex, page, text = (paths[ending].read_text(encoding="utf-8") for ending in ("tex", "html", "md"))
    assert "0.400 \\[−0.871, 1.671\\]" in text
    assert " / 0.400" not in text  # nobody prints such numbers
    assert tex.count(r"\begin{") == tex.count(r"\end{")
    assert tex.count(r"\begin{longtable}") > 1  # too wide for one page
    assert tex.count(r"\label{") == 1
    assert "α" not in tex
    assert "[−0.871, 1.671]" in page
    if table == "survey_3":
        assert "fine-grained / image of a class" in text
        assert "– / control" in text
        assert METHODS["cam"].paper in text
        assert f"– / {METHODS['cam'].paper}" not in text  # the survey has no such column
        assert "| online |" in text
        assert "<span class='published'>fine-grained /</span>" in page


# ----------------------------------------------------------------------------------------- claims


def put_claimed(run, holds):
    """Write scores of which every claim holds, or none."""
    good = 1 if holds else -1
    more = 0.01 * run.seed

    def pair(metric, first, second, case="", gain=0.3):
        """Return values of two methods of which the first is larger, if claims hold."""
        return {(first, metric, case): [0.5 + good * gain + more] * 2, (second, metric, case): [0.5] * 2}

    iou = {"fq": 0.8, "grad_cam": 0.5, "cam": 0.2}
    if not holds:
        iou = dict(zip(iou, reversed(iou.values()), strict=True))
    put_scores(run, "localisation", {(name, "iou", "0.5"): [value + more * good * (name == "fq"), value]
                                     for name, value in iou.items()})  # fmt: skip
    rough = {"vanilla_gradient": 0.8, "guided_backpropagation": 0.8, "smooth_grad": 0.5, "grad_cam": 0.1}
    if not holds:
        rough = {"vanilla_gradient": 0.2, "guided_backpropagation": 0.2, "smooth_grad": 0.5, "grad_cam": 0.9}
    put_scores(run, "faithfulness", {(name, "roughness", ""): [value + more * good * (name in ("vanilla_gradient",
               "guided_backpropagation"))] for name, value in rough.items()})  # fmt: skip
    sensitive = {
        **pair("max_sensitivity", "vanilla_gradient", "smooth_grad"),
        ("integrated_gradients", "max_sensitivity", ""): [0.5] * 2,
        **pair("max_sensitivity", "grad_cam", "score_cam"),
        ("grad_cam_plus_plus", "max_sensitivity", ""): [0.5 + good * 0.2 + more] * 2,
    }
    flipped = pair("fgsm_rank", "grad_cam", "vanilla_gradient", "flipped at 0.25")
    put_scores(run, "stability", {**sensitive, **flipped})
    sane = pair("parameters_rank_size", "guided_backpropagation", "vanilla_gradient", "last")
    sane[("grad_cam", "parameters_rank_size", "last")] = [0.5] * 2
    put_shuffled_accuracy(run, 0.95)
    put_scores(run, "sanity", {**sane, **pair("labels_rank_size", "guided_backpropagation", "vanilla_gradient")})
    gradient = "vanilla_gradient"
    put_scores(
        run,
        "attack",
        {
            (gradient, "attack_approach", "target"): [0.2 * good + more] * 2,
            (gradient, "attack_approach", "chance"): [0.0] * 2,
            (gradient, "attack_peaks", "peaks"): [0.5 - 0.2 * good - more] * 2,
            (gradient, "attack_peaks", "chance"): [0.5] * 2,
        },
    )
    slow = 2 if holds else 0.5
    names = ("integrated_gradients", "smooth_grad", "rectified_gradient", "grad_cam_plus_plus")
    seconds = {(name, "seconds", ""): [slow + more * good * 0.1] for name in names}
    fast = ("vanilla_gradient", "guided_backpropagation", "grad_cam")
    seconds |= {(name, "seconds", ""): [1.0] for name in fast}
    seconds |= {("cam", "seconds", ""): [NAN], ("score_cam", "seconds", ""): [(5 if holds else 0.4) + more]}
    put_scores(run, "cost", seconds)
    put_pictures(
        run,
        {"activation_maximisation": [(1, 0.5, 0.5 + 0.2 * good + more)], "dgn_am": [(1, 0.5 + 0.3 * good + more, 0.5)]},
        {},
    )
    accuracy = 0.6 + 0.2 * good + more
    put_retrained(run, {"random": {0: 0.9, 0.5: 0.6}, gradient: {0: 0.9, 0.5: accuracy},
                        "integrated_gradients": {0: 0.9, 0.5: accuracy}})  # fmt: skip


@pytest.mark.parametrize(("holds", "expected"), [(True, "reproduced"), (False, "contradicted")])
def test_each_claim_can_hold_and_can_fail(published, tmp_path, holds, expected):
    claims = [one for one in read_claims(published / "claims.csv") if one.table in survey.TABLES]
    assert {one.statistic for one in claims} == set(survey.STATISTICS)
    runs = make_runs(tmp_path, "lenet5", seeds=range(4))
    for run in runs:
        put_claimed(run, holds)
    found = evaluate_claims(claims, runs)
    assert found["note"].tolist() == [""] * len(claims)
    assert dict(zip(found["id"], found["verdict"], strict=True)) == {one.id: expected for one in claims}


@pytest.mark.parametrize("name", sorted(survey.STATISTICS))
def test_a_statistic_without_its_file_says_which(tmp_path, name):
    run = make_runs(tmp_path, "lenet5", seeds=(0,))[0]
    with pytest.raises(UndefinedStatistic, match=r"explainers/\w+\.parquet is missing"):
        survey.STATISTICS[name](run)


def test_statistics_say_why_they_are_undefined(runs):
    statistics = survey.STATISTICS
    for name, reason in (
        ("iou_grad_cam_over_cam", f"cam: {CAM_REFUSES}"),
        ("iou_fq_over_grad_cam", "fq was not asked for"),
        ("agreement_dgn_over_am", "dgn_am: there is no generator"),
        ("time_score_cam_over_family", "score_cam was not asked for"),
    ):
        with pytest.raises(UndefinedStatistic, match=reason):
            statistics[name](runs[0])


def test_claims_are_judged_where_the_study_asks_for_their_methods(published, tmp_path):
    claims = [one for one in read_claims(published / "claims.csv") if one.table in survey.TABLES]
    own, others = make_runs(tmp_path, "lenet5", seeds=range(2)), make_runs(tmp_path, "se", seeds=range(2))
    for run in own:
        put_claimed(run, True)
    for run in others:
        put_claimed(run, True)
        put_scores(run, "localisation", {("grad_cam", "iou", "0.5"): [0.5]})
        put_scores(run, "cost", {("grad_cam", "seconds", ""): [1.0]})
        put_retrained(run, {"random": {0: 0.9, 0.5: 0.6}})
    found = evaluate_claims(claims, [*own, *others])
    whole, part = (set(found[found["model"] == model]["id"]) for model in ("lenet5", "se"))
    assert whole == {one.id for one in claims}
    lacking = whole - part
    assert {one.statistic for one in claims if one.id in lacking} == {
        name for name in survey.STATISTICS if name.startswith(("iou_", "time_", "retrained_"))
    }


def test_kinds_of_detail_need_a_method_of_each(tmp_path):
    run, statistic = make_runs(tmp_path, "lenet5", seeds=(0,))[0], survey.STATISTICS["roughness_fine_over_regional"]
    rough = {("vanilla_gradient", "roughness", ""): [0.9], ("fq", "roughness", ""): [5.0]}
    put_scores(run, "faithfulness", {**rough, ("random", "roughness", ""): [1.0]})
    with pytest.raises(NotAsked):
        statistic(run)
    put_scores(run, "faithfulness", {**rough, ("grad_cam", "roughness", ""): [NAN]})
    with pytest.raises(UndefinedStatistic, match="has maps"):
        statistic(run)
    put_scores(run, "faithfulness", {**rough, ("grad_cam", "roughness", ""): [0.2], ("rise", "roughness", ""): [0.4]})
    assert statistic(run) == pytest.approx(0.6)


def test_differences_are_of_the_same_images(tmp_path):
    run = make_runs(tmp_path, "lenet5", seeds=(0,))[0]
    put_scores(
        run, "localisation", {("fq", "iou", "0.5"): [0.9, 0.5, NAN], ("grad_cam", "iou", "0.5"): [NAN, 0.1, 0.9]}
    )
    assert survey.STATISTICS["iou_fq_over_grad_cam"](run) == pytest.approx(0.4)
    put_scores(run, "localisation", {("fq", "iou", "0.5"): [0.9, NAN], ("grad_cam", "iou", "0.5"): [NAN, 0.1]})
    with pytest.raises(UndefinedStatistic, match="no image in common"):
        survey.STATISTICS["iou_fq_over_grad_cam"](run)


def test_random_labels_count_where_they_were_learned(tmp_path, published):
    run = make_runs(tmp_path, "lenet5", seeds=(0,))[0]
    scores = {
        ("guided_backpropagation", "labels_rank_size", ""): [0.9],
        ("vanilla_gradient", "labels_rank_size", ""): [0.5],
    }
    put_scores(run, "sanity", scores)
    put_shuffled_accuracy(run, 0.9)
    assert survey.STATISTICS["labels_guided_over_gradient"](run) == pytest.approx(0.4)
    asked = ("Gradient (VBP)", "random labels, rank of sizes")
    row = of(fill("explainers_scores", [run], published), *asked)
    assert (row["ours"], row["note"]) == (0.5, "")
    put_shuffled_accuracy(run, 0.67)
    row = of(fill("explainers_scores", [run], published), *asked)
    assert (row["ours"], row["note"]) == (0.5, "seed 0: the shuffled labels were not learned: training accuracy 67 %")
    with pytest.raises(UndefinedStatistic, match="the shuffled labels were not learned: training accuracy 67 %"):
        survey.STATISTICS["labels_guided_over_gradient"](run)


def test_sources_of_claims_and_words_name_a_place(published):
    with open(published / "claims.csv", encoding="utf-8", newline="") as file:
        own = [row for row in csv.DictReader(file) if row["table"] in survey.TABLES]
    assert all(row["source"] and row["statement"].endswith((".", ").")) for row in own)
    assert {CONTENTS[row["table"]].shown for row in own} == set(survey.TABLES)
