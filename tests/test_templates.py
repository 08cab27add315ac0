"""Templates and constitutions: found, filled in one pass, refused with a reason."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlaif.errors import InputError
from rlaif.judges.llm import Forms
from rlaif.judges.parse import Grammar
from rlaif.templates import Template, data_dir, find, load_constitution, load_template, read_yaml

SHIPPED = data_dir() / "prompts"
CONSTITUTIONS = sorted(p.stem for p in (SHIPPED / "constitutions").glob("*.yaml"))
TEMPLATES = sorted(p.stem for p in (SHIPPED / "templates").glob("*.txt"))
placeholders = st.sampled_from(
    ["{a}", "{b}", "{mark}", "{prompt}", "{constitution}", "{", "}", "{{a}}", "{x}", "\\1", "\\g<0>"]
)


@settings(database=None, deadline=None)
@given(a=st.lists(st.one_of(placeholders, st.text(max_size=5))).map("".join), b=st.text())
def test_values_are_never_scanned_for_placeholders(a, b):
    template = Template("t", "{a}|{b}|{a}", {})
    assert template.fill(a=a, b=b) == f"{a}|{b}|{a}"


def test_undeclared_braces_stay():
    assert Template("t", 'say {"verdict": 1} and {unknown} for {a}', {}).fill(a="x") == 'say {"verdict": 1} and {unknown} for x'


@pytest.mark.parametrize("name", TEMPLATES)
def test_shipped_templates_load_and_declare_a_grammar(name):
    kind, _, asks = name.partition("-")
    token, text = (name, f"{kind}-text") if asks == "token" else (None, name)
    assert Forms.load(kind, token, text, reference=True).kind == kind
    template = load_template(name, needs=())
    grammar = Grammar.of(template.front, name)
    assert bool(grammar.patterns) == (asks != "token")
    if kind == "pairwise":
        assert set(grammar.means.values()) >= {(1.0, 0.0), (0.0, 1.0)}
    assert not template.text.startswith("---")


@pytest.mark.parametrize(("kind", "template"), [("pairwise", "pointwise-text"), ("listwise", "pairwise-text")])
def test_a_template_of_another_kind_is_refused(kind, template):
    with pytest.raises(InputError, match=f"{template}|lacks"):
        Forms.load(kind, None, template)


@pytest.mark.parametrize("name", CONSTITUTIONS)
def test_shipped_constitutions_load(name):
    constitution = load_constitution(name)
    assert constitution.id == name
    assert len(constitution.text.splitlines()) == len(constitution.principles) >= 3


@pytest.mark.parametrize("name", [name for name in CONSTITUTIONS if not name.endswith("-zh")])
def test_every_constitution_has_a_chinese_version_with_the_same_principles(name):
    english, chinese = load_constitution(name), load_constitution(f"{name}-zh")
    assert [p.weight for p in english.principles] == [p.weight for p in chinese.principles]
    assert [p.id for p in english.principles] == [p.id for p in chinese.principles]
    assert english.digest != chinese.digest


def test_every_yaml_file_shipped_is_valid():
    files = [*data_dir().glob("judges/*.yaml"), *SHIPPED.rglob("*.yaml")]
    assert files and all(isinstance(read_yaml(path), dict) for path in files)


@pytest.mark.parametrize(
    ("folder", "suffix", "known"),
    [
        ("judges", ".yaml", "pairwise"),
        ("prompts/constitutions", ".yaml", "hhh-zh"),
        ("prompts/templates", ".txt", "pairwise-text"),
    ],
)
@pytest.mark.parametrize("name", ["nowhere", "no/where.yaml", "", ".", "..", "x" * 300, "Be kind. " * 50, "a\0b"])
def test_an_unknown_name_lists_the_known_ones(folder, suffix, known, name):
    with pytest.raises(InputError) as refused:
        find(folder, name, suffix)
    assert known in str(refused.value)


def test_a_path_is_a_path_and_a_bare_name_is_shipped(tmp_path, monkeypatch):
    """A file called `hhh` that happens to lie in the working directory is not the constitution hhh; ./hhh is."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "hhh").write_text("principles: [Be brief.]")
    assert load_constitution("hhh").id == "hhh"
    assert len(load_constitution("hhh").principles) > 1
    assert load_constitution("./hhh").text == load_constitution(str(tmp_path / "hhh")).text == "- Be brief."


def test_shipped_files_are_found_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert (
        find("judges", "shortest.py", ".py") == find("judges", "judges/shortest.py", ".py") == data_dir() / "judges/shortest.py"
    )
    assert find("judges", "pairwise", ".yaml") == find("judges", "judges/pairwise.yaml", ".yaml")


def test_a_template_that_lacks_a_placeholder_is_refused_by_name(tmp_path):
    path = tmp_path / "mine.txt"
    path.write_text("---\nverdict: token\n---\n{a} or {b}?")
    with pytest.raises(InputError, match=r"mine\.txt: the template lacks \{mark\}, \{prompt\}"):
        load_template(str(path), needs=("a", "b", "mark", "prompt"))


@pytest.mark.parametrize(
    "content", [b"---\n: [\n---\n{a}", b"---\n- a list\n---\n{a}", b"---\nonly text\n---\n{a}", b"\xff\xfe{a}"]
)
def test_a_broken_template_is_the_user_s_mistake(tmp_path, content):
    path = tmp_path / "mine.txt"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"mine\.txt"):
        load_template(str(path), needs=("a",))


def test_a_template_s_digest_follows_text_and_front_matter(tmp_path):
    def digest(content: str, name: str = "t.txt") -> str:
        (tmp_path / name).write_text(content)
        return load_template(str(tmp_path / name), needs=()).digest

    one = digest("---\nverdict: token\n---\nWhich?\n")
    assert digest("---\r\nverdict: token\r\n---\r\nWhich?\r\n", "other.txt") == one
    assert len({one, digest("---\nverdict: other\n---\nWhich?"), digest("---\nverdict: token\n---\nWhich one?")}) == 3


def test_a_constitution_may_be_a_plain_list(tmp_path):
    path = tmp_path / "short.yaml"
    path.write_text("- Be brief.\n- {id: kind, text: Be kind.}\n")
    constitution = load_constitution(str(path))
    assert (constitution.id, [p.id for p in constitution.principles]) == ("short", ["1", "kind"])
    assert constitution.text == "- Be brief.\n- Be kind."


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "`principles` must be a list"),
        ("principles: []", "at least one"),
        ("principles: Be kind.", "must be a list"),
        ("- {id: a}", "principle 1 needs a `text`"),
        ("- ok\n- '  '", "principle 2 needs a `text`"),
        ("- {id: a, text: x}\n- {id: a, text: y}", "same id"),
        ("principles: [", "not valid YAML"),
        ("- a: \tb\n\t- c", "not valid YAML"),
    ],
)
def test_a_broken_constitution_is_refused_with_its_file(tmp_path, content, said):
    path = tmp_path / "mine.yaml"
    path.write_text(content)
    with pytest.raises(InputError, match=said) as refused:
        load_constitution(str(path))
    assert "mine.yaml" in str(refused.value)


def test_a_constitution_s_digest_follows_its_principles(tmp_path):
    path = tmp_path / "c.yaml"
    digests = set()
    for content in ("- {id: a, text: x}", "- {id: a, text: y}", "- {id: b, text: x}", "- {id: a, text: x}\n- y"):
        path.write_text(content)
        digests.add(load_constitution(str(path)).digest)
    assert len(digests) == 4
