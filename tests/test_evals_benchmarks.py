"""Benchmarks as their makers ship them: what is read from each, where the makers look for results, and what is refused."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dim_jax.errors import InputError
from dim_jax.evals.benchmark import Benchmark, Case, benchmark, benchmarks, read_finished, stratified_sample
from dim_jax.processing.pictures import open_picture
from tests import benchmark_fixtures as made
from tests.painter_fixtures import picture


@pytest.fixture(autouse=True)
def _kept_pictures(tmp_path, monkeypatch):
    monkeypatch.setenv("DIM_JAX_CACHE", str(tmp_path / "cache"))


def cases(name: str, data: Path) -> list[Case]:
    return benchmark(name).read(data)


def test_imgedit(tmp_path):
    folder = made.imgedit(tmp_path)
    found = cases("imgedit", folder)
    assert [(case.id, case.category) for case in found] == [("1082", "adjust"), ("673", "style"), ("1149", "compose"), ("97", "add")]
    assert found[2].source == folder / "Benchmark/singleturn/compose/human/14.jpg"
    assert found[0].prompt == "Make the shell smooth."
    assert benchmark("imgedit").official(found[0], 0) == "1082.png"
    assert cases("imgedit", folder / "Benchmark/singleturn") == found, "from any folder on the way"
    # In one version of the makers' table the type has another name.
    table = folder / "Benchmark/singleturn/singleturn.json"
    table.write_text(table.read_text().replace("adjust", "alter"))
    assert cases("imgedit", folder) == found


def test_imgedit_by_the_jsonl_takes_types_from_the_makers_table(tmp_path):
    folder = made.imgedit(tmp_path)
    rows = [
        {"id": key, "image_path": f"./cache/ImgEdit/Benchmark/singleturn/{row['id']}", "prompt": row["prompt"]}
        for key, row in made.IMGEDIT.items()
    ]
    path = made.put_lines(folder / "tos_dataset_edit.jsonl", rows)
    assert cases("imgedit", path) == cases("imgedit", folder)
    made.put_lines(path, [*rows, {**rows[0], "id": "5"}])
    with pytest.raises(InputError, match=r'tos_dataset_edit.jsonl, line 5: id "5" is not in .*singleturn.json'):
        cases("imgedit", path)


def test_imgedit_in_rounds(tmp_path):
    first, second = cases("imgedit-multiturn", made.imgedit_multiturn(tmp_path))
    assert (first.id, first.category) == ("content_memory-1", "content_memory")
    assert first.turns == ("Edit 1 of content_memory.", "Edit 2 of content_memory.")
    assert len(second.turns) == 3
    assert second.prompt == second.turns[0]
    assert [benchmark("imgedit-multiturn").official(second, k) for k in (0, 2)] == [
        "version_backtrace/1_turn1.png", "version_backtrace/1_turn3.png",
    ]  # fmt: skip


def test_gedit_from_jsonl_and_from_parquet(tmp_path):
    gedit = benchmark("gedit")
    rows, table = cases("gedit", made.gedit(tmp_path / "rows")), cases("gedit", made.gedit_parquet(tmp_path / "table"))
    assert [case.id for case in rows] == ["40", "41", "42", "43"], "the ids of the blueprints that are shipped"
    assert sorted(case.id for case in table) == ["hash0en", "hash1en", "hash2en", "hash3en"], "English alone"
    assert {name: sum(map(chosen, rows)) for name, chosen in gedit.subsets.items()} == {
        "full set": 4, "full set without text change": 2, "intersection": 2, "intersection without text change": 1,
    }  # fmt: skip
    assert gedit.official(rows[3], 0) == "fullset/subject-add/en/hash3.png"
    assert gedit.official_files(rows[3]) == {"fullset/subject-add/en/hash3_SRCIMG.png": rows[3].source}
    by_key = {case.id: case for case in table}
    for i in range(4):
        source = by_key[f"hash{i}en"].source
        assert source is not None
        np.testing.assert_array_equal(open_picture(source), picture(64, 64, i))
    assert [case.source for case in cases("gedit", tmp_path / "table")] == [case.source for case in table], "the same files again"


def test_geneval(tmp_path):
    geneval = benchmark("geneval")
    found = cases("geneval", made.geneval(tmp_path))
    assert [(case.id, case.category, case.source) for case in found[1:]] == [("1", "single_object", None), ("2", "counting", None)]
    assert geneval.pictures_per_case == 4
    assert geneval.official(found[2], 3) == "00002/samples/0003.png"
    ((name, text),) = geneval.official_files(found[2]).items()
    assert name == "00002/metadata.jsonl"
    assert json.loads(str(text)) == made.GENEVAL[2]
    shipped = [{"id": str(i), "image_path": "x.jpg", "prompt": row["prompt"], "meta_data": row} for i, row in enumerate(made.GENEVAL)]
    assert cases("geneval", made.put_lines(tmp_path / "other/tos_dataset.jsonl", shipped)) == found


def test_results_of_genevals_scorer(tmp_path):
    geneval, found = benchmark("geneval"), cases("geneval", made.geneval(tmp_path))
    assert geneval.official_scores is not None
    rows = [{"filename": f"x/0000{i}/samples/000{k}.png", "tag": "t", "correct": k < i} for i in range(3) for k in range(4)]
    scores = geneval.official_scores(made.put_lines(tmp_path / "results.jsonl", rows), found)
    assert scores == {"0": {"correct": 0}, "1": {"correct": 0.25}, "2": {"correct": 0.5}}
    for wrong in ({"filename": "x/00007/samples/0000.png", "correct": True}, {"filename": "00000/samples/0.png", "correct": "yes"}):
        with pytest.raises(InputError, match=r"results.jsonl, line 2: is not a result"):
            geneval.official_scores(made.put_lines(tmp_path / "results.jsonl", [rows[0], wrong]), found)


def test_mjhq(tmp_path):
    found = cases("mjhq", made.mjhq(tmp_path))
    assert [(case.id, case.category, case.prompt) for case in found][1] == ("1abc", "logo", "picture 1")
    assert found[1].target == tmp_path / "logo/1abc.jpg"
    rows = [{"id": case.id, "image_path": f"./cache/MJHQ-30K/{case.category}/{case.id}.jpg", "prompt": case.prompt} for case in found]
    assert cases("mjhq", made.put_lines(tmp_path / "tos_dataset.jsonl", rows)) == found


def test_magicbrush_turn_by_turn_and_by_session(tmp_path):
    single, multi = benchmark("magicbrush"), benchmark("magicbrush-multiturn")
    turns, sessions = single.read(made.magicbrush(tmp_path)), multi.read(tmp_path)
    assert [case.id for case in turns] == ["30-1", "139-1", "139-2"]
    last = turns[2]
    assert last.source == tmp_path / "images/139/139-output1.png", "from the makers' own picture"
    assert (last.target, last.mask) == (tmp_path / "images/139/139-output2.png", tmp_path / "images/139/139-mask2.png")
    assert last.metadata["caption"] == "a caption of 139-output2.png"
    assert [single.official(case, 0) for case in turns] == ["30/30_1.png", "139/139_1.png", "139/139_inde_2.png"]
    assert [case.turns for case in sessions] == [("Edit 1.",), ("Edit 1.", "Edit 2.")]
    assert (sessions[1].source, sessions[1].target) == (tmp_path / "images/139/139-input.png", last.target)
    assert [multi.official(sessions[1], k) for k in range(2)] == ["139/139_1.png", "139/139_iter_2.png"]
    table = single.read(made.magicbrush_parquet(tmp_path / "hub"))
    assert [case.id for case in table] == ["139-1", "139-2", "30-1"]
    assert table[1].target is not None
    np.testing.assert_array_equal(open_picture(table[1].target), picture(64, 64, 3))


def test_risebench(tmp_path):
    found = cases("risebench", made.risebench(tmp_path))
    assert [case.category for case in found] == [f"{kind}_reasoning" for kind in ("temporal", "causal", "spatial", "logical")]
    assert found[0].metadata["reference"] == "the fruit is rotten"
    assert found[0].source == tmp_path / "data/temporal_reasoning_images/1.png"
    assert found[2].target == tmp_path / "data/spatial_reasoning_images/3_ref.png"
    assert found[2].metadata["reference_img"] == str(found[2].target)
    assert "consistency_free" not in found[2].metadata, "what is null is not there"
    assert benchmark("risebench").official(found[3], 0) == "images/logical_reasoning/logical_reasoning_4.png"


# What all have in common


def test_every_published_row_names_its_source_and_its_judge():
    for one in benchmarks().values():
        for row in one.published:
            assert row.scores
            assert row.source
            assert row.judge


def test_a_set_that_is_not_whole_is_noted_and_a_whole_one_is_not(tmp_path):
    found, notes = benchmark("imgedit").cases(made.imgedit(tmp_path))
    assert len(found) == 4
    assert notes == [f"{tmp_path}: 4 cases; all of ImgEdit-Bench (single turn) are 737, so the scores are not those of the whole."]
    whole = Benchmark("x", "X", "edit", lambda path: found, lambda case, k: "", size=4)
    assert whole.cases(tmp_path) == (found, [])


def test_a_limit_spreads_over_categories_and_grows():
    many = [Case(str(i), category, "x", None) for i, category in enumerate("a" * 50 + "b" * 3 + "c" * 20)]
    small, large = stratified_sample(many, 9, 0), stratified_sample(many, 30, 0)
    assert Counter(case.category for case in small) == {"a": 3, "b": 3, "c": 3}
    assert Counter(case.category for case in large)["b"] == 3
    assert {case.id for case in small} < {case.id for case in large}
    assert [case.id for case in large] == sorted((case.id for case in large), key=int)
    assert stratified_sample(many, 9, 1) != small
    assert stratified_sample(many, 100, 0) == many


@pytest.mark.parametrize("name", ["imgedit", "gedit", "magicbrush", "mjhq", "risebench", "imgedit-multiturn"])
def test_missing_pictures_are_one_error(name, tmp_path):
    getattr(made, name.replace("-", "_"))(tmp_path)
    pictures = [path for path in sorted(tmp_path.rglob("*")) if path.suffix in (".jpg", ".png")]
    pictures[0].unlink()
    with pytest.raises(InputError, match=r"pictures are missing, such as .*\. Put them below") as error:
        cases(name, tmp_path)
    assert pictures[0].name in str(error.value)


def test_broken_files_are_one_error_that_names_the_place(tmp_path):
    folder = made.imgedit(tmp_path / "imgedit")
    table = folder / "Benchmark/singleturn/singleturn.json"
    for wrong, says in (
        ({"9": {"id": "animal/000342021.jpg", "prompt": "x", "edit_type": "fly"}}, 'entry "9": "fly" is not a type of edit'),
        ({"9": {"id": "animal/000342021.jpg", "edit_type": "add"}}, 'entry "9": needs a text "prompt"'),
        ({"9": "x"}, 'entry "9": is not an object'),
        ({"9": {"id": "../../etc/passwd", "prompt": "x", "edit_type": "add"}}, "is not the name of a picture"),
        ([], "must be an object"),
    ):
        made.put_json(table, wrong)
        with pytest.raises(InputError, match=says):
            cases("imgedit", folder)
    table.write_text('{"9": ')
    with pytest.raises(InputError, match=r"singleturn.json: is not a JSON file"):
        cases("imgedit", folder)
    rows = made.gedit(tmp_path / "gedit") / "tos_dataset_edit_en.jsonl"
    rows.write_text(rows.read_text() + "{\n")
    with pytest.raises(InputError, match="line 5: is not JSON"):
        cases("gedit", rows.parent)
    with pytest.raises(InputError, match="there is no such folder"):
        cases("geneval", tmp_path / "nothing")
    with pytest.raises(InputError, match=r"has no parquet file"):
        cases("gedit", tmp_path)
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(InputError, match=r"broken.parquet: cannot be read"):
        cases("gedit", tmp_path)


def test_ids_are_unique_and_become_names_of_files(tmp_path):
    case = Case("a/b>c.1", "one/../two", "x", None)
    assert case.file == "one%2F..%2Ftwo/a%2Fb%3Ec.1"
    twice = Benchmark("x", "X", "edit", lambda path: [case, case], lambda case, k: "")
    with pytest.raises(InputError, match=r'id "a/b>c.1" occurs more than once'):
        twice.cases(tmp_path)
    with pytest.raises(InputError, match="there is no case"):
        Benchmark("x", "X", "edit", lambda path: [], lambda case, k: "").cases(tmp_path)


def test_finished_cases_are_read_up_to_a_torn_line(tmp_path):
    row = {"id": "1", "pictures": ["pictures/a/1.png"], "prompt": "x"}
    made.put_lines(tmp_path / "cases.1of2.jsonl", [row, {**row, "id": "2"}])
    made.put_lines(tmp_path / "cases.2of2.jsonl", [{**row, "id": "3"}])
    with (tmp_path / "cases.1of2.jsonl").open("a") as file:
        file.write('{"id": "4", "pic')
    assert list(read_finished(tmp_path)) == ["1", "2", "3"]
    made.put_lines(tmp_path / "cases.jsonl", [{"id": 7}])
    with pytest.raises(InputError, match=r"cases.jsonl, line 1 was not written by"):
        read_finished(tmp_path)
    assert read_finished(tmp_path / "nothing") == {}


def test_emoji_takes_the_pairs_and_the_noise_of_the_report_by_rule(tmp_path):
    from dim_jax.datasets.layouts.pairs import Pair, Pairs, Picture, encode_webp, write_pairs
    from dim_jax.evals import emoji
    from dim_jax.evals.generate import seed_of

    pixels = [np.asarray(picture(64, 64, i)) for i in range(4)]
    pictures = [Picture("noto", str(i), "x", "test", ("a face",), encode_webp(one)) for i, one in enumerate(pixels)]
    pairs = [Pair(i, 3, f"rule {i % 2}", (f"Edit {i}.", "another wording"), "a blueprint") for i in range(3)]
    write_pairs(tmp_path, pictures, pairs)
    found = cases("emoji", tmp_path)
    assert [case.category for case in found] == ["rule 0", "rule 0", "rule 1"]
    assert {(case.id, case.category, case.prompt) for case in found} == {
        (f"noto/{i}>noto/3", f"rule {i % 2}", f"Edit {i}.") for i in range(3)
    }
    examples = {example.key: example for example in (Pairs(tmp_path, "test", "edit")[i] for i in range(3))}
    for case in found:
        assert case.source is not None
        source = open_picture(case.source)
        np.testing.assert_array_equal(source, examples[case.id].source or Image.new("RGB", (1, 1)))
        assert seed_of(case, 7, source) == emoji.picture_request(examples[case.id], "any text", "none", 7).seed
