"""Mutants: which places are changed, how, and what a run of one says."""

import ast
import textwrap

from experiments.checks import mutants

TEXT = textwrap.dedent("""
    def f(x: int, y=2) -> float:
        if not x > 1 and y:
            raise ValueError(f"got {x + 1}")
        return x * 3 if x else -y
""")


def test_every_kind_of_place_is_changed_once_and_words_are_left_alone():
    changes = [mutants.mutate(TEXT, place) for place in range(len(mutants.list_sites(ast.parse(TEXT))))]
    assert [what.split(": ", 1)[0] for _, what in changes] == [
        "2 -> 3",
        "condition turned round",
        "And -> Or",
        "Not left out",
        "Gt -> GtE",
        "1 -> 2",
        "condition turned round",
        "Mult -> Div",
        "3 -> 4",
        "USub left out",
    ]
    texts = {ast.unparse(tree) for tree, _ in changes}
    assert len(texts) == 10 and ast.unparse(ast.parse(TEXT)) not in texts
    assert all("x + 1" in text for text in texts)


def test_places_are_drawn_by_the_seed():
    assert mutants.draw(0) == mutants.draw(0) != mutants.draw(1)
    assert sorted(mutants.draw(0)) == sorted(mutants.draw(1))


def test_a_guard_without_a_test_survives_and_one_with_a_test_does_not(tmp_path, monkeypatch):
    (tmp_path / "guarded.py").write_text("def f(x):\n    return x > 1\n")
    (tmp_path / "test_it.py").write_text("import guarded\n\ndef test_f():\n    assert guarded.f(LIMIT)\n")
    monkeypatch.setattr(mutants, "ROOT", tmp_path)
    monkeypatch.setattr(mutants, "TESTS", {"guarded.py": ("test_it.py",)})
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    text = (tmp_path / "test_it.py").read_text()
    (tmp_path / "test_it.py").write_text(text.replace("LIMIT", "2"))
    assert mutants.run_mutant("guarded.py", 0) == ("guarded.py, Gt -> GtE: return x > 1", "survived")
    assert mutants.run_mutant("guarded.py", 1) == ("guarded.py, 1 -> 2: return x > 1", "killed")


def test_survivors_are_run_again_after_tests_were_added(tmp_path, monkeypatch):
    (tmp_path / "guarded.py").write_text("def f(x):\n    return x > 1\n\n\ndef g(x):\n    return x + 1\n")
    monkeypatch.setattr(mutants, "ROOT", tmp_path)
    monkeypatch.setattr(mutants, "TESTS", {"guarded.py": ()})
    now = {"Gt -> GtE": "killed", "Add -> Sub": "survived"}
    monkeypatch.setattr(
        mutants, "run_mutant", lambda path, place: (
            "", now[mutants.mutate((tmp_path / path).read_text(), place)[1].split(": ")[0]]))  # fmt: skip
    former = {
        "made_by": {"commit": "abc"}, "seed": 0, "mutants": 10, "killed": 7, "survived": 3, "explained": {},
        "unexplained": ["guarded.py, Gt -> GtE: return x > 1", "guarded.py, Add -> Sub: return x + 1",
                        "guarded.py, 7 -> 8: a line of before"],
        "by_file": {"guarded.py": {"mutants": 10, "survived": 3}},
    }  # fmt: skip
    found = mutants.run_again(former)
    assert found["unexplained"] == ["guarded.py, Add -> Sub: return x + 1"]
    assert (found["mutants"], found["killed"], found["survived"]) == (10, 8, 1)
    gone = ["guarded.py, 7 -> 8: a line of before"]
    assert found["again"] == {"commit_then": "abc", "survivors_then": 3, "rewritten": gone}
    page = mutants.format_page(found)
    assert "at commit abc, where 3 survived" in page and "as their line is no more: 1." in page
    assert found["by_file"] == {"guarded.py": {"mutants": 10, "survived": 1}}


def test_the_page_has_each_file_and_each_survivor():
    files = {"a.py": {"mutants": 3, "survived": 2}}
    report = {"by_file": files, "mutants": 3, "survived": 2, "explained": {"a.py, 0 -> 1: x = 0": "as good a seed"},
              "unexplained": ["a.py, Gt -> GtE: x > 1"], "made_by": {"command": "python -m x"}}  # fmt: skip
    page = mutants.format_page(report)
    assert "| a.py | 3 | 2 |" in page and "| all | 3 | 2 |" in page and page.count("```") == 2
    assert "* as good a seed: `a.py, 0 -> 1: x = 0`" in page and "* `a.py, Gt -> GtE: x > 1`" in page
