"""Links, files, commands and snippets in the documentation exist; documentation and docstrings are in plain English."""

import ast
import importlib
import pathlib
import re
import subprocess
import sys
import tomllib

import pytest
import yaml

import anchorjax
from tests import commands

ROOT = pathlib.Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]
# Paths begin at the top of the repository. One that begins with a subfolder of the package lacks its `anchorjax/`.
SUBFOLDERS = sorted(folder.parent.name for folder in (ROOT / "anchorjax").glob("*/__init__.py"))
FOLDERS = ["anchorjax", "benchmarks", "configs", "docs", "eval", "tests", *SUBFOLDERS]
CODE = [
    file
    for folder in ("anchorjax", "benchmarks", "configs", "eval", "tests")
    for file in sorted((ROOT / folder).rglob("*.py"))
    if file != pathlib.Path(__file__)
]
# Words that the project once used for a term of the field, and the term.
REPLACED = {
    r"\bmend(s|ed|ing)?\b": "fix",
    r"\b(random_)?twins?\b": "random-init baseline",
    r"\b[Bb]eginning of sequence\b": "BOS",
}


def name_of(path: pathlib.Path) -> str:
    return str(path.relative_to(ROOT))


def anchors(page: pathlib.Path) -> set[str]:
    """GitHub's names of a page's headings."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_readme_has_at_most_119_lines():
    assert len(README.read_text().splitlines()) <= 119


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if link.startswith("http"):
            continue
        path, _, heading = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{name_of(page)}: {link}"
        assert not heading or heading in anchors(target), f"{name_of(page)}: {link}"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_files_that_are_named_exist(page):
    text = re.sub(r"^ \S+ +\| +\d+ [+-]+$", "", page.read_text(), flags=re.MULTILINE)  # `git diff --stat --relative`
    named = re.findall(rf"(?<![\w./-])((?:{'|'.join(FOLDERS)})/[\w/.]*\w/?)(?![\w*{{-])", text)
    for path in named:
        if re.search(r"[A-Z]{3}", path):  # a placeholder
            continue
        inside = ROOT / "anchorjax" / path
        if path.split("/")[0] in SUBFOLDERS and not path.endswith(".py") and not inside.exists():
            continue  # a directory of the user's, such as checkpoints/NAME
        assert (ROOT / path).exists() or path.endswith("/x.py"), f"{name_of(page)}: {path}"


def commands_of(file: pathlib.Path) -> list[str]:
    """Commands in a page's blocks or in docstrings, with `anchorjax` for the scripts that are the same."""
    text = file.read_text()
    if file.suffix == ".md":
        text = "\n".join(re.findall(r"^```.*\n([\s\S]*?)^```", text, re.MULTILINE))
    found = re.findall(r"^ *(?:\$ )?((?:anchorjax|(?:\S*/)?python) (?:.*\\\n)*.*)$", text, re.MULTILINE)
    found = [re.sub(r"\\+\n\s*", " ", command) for command in found]
    for script, command in (
        (r"-m anchorjax\b", "anchorjax"),
        (r"train\.py", "anchorjax train"),
        (r"eval/(generate|report)\.py", r"anchorjax \1"),
        (r"eval/(\w+)\.py", r"anchorjax evaluate \1"),
    ):
        found = [re.sub(rf"^(?:\S*/)?python {script}", command, one) for one in found]
    return [one for one in found if one.startswith("anchorjax ") and not re.search(r"\.\.\.|\||\.$", one)]


@pytest.mark.parametrize("file", [*PAGES, *CODE], ids=name_of)
def test_commands_that_are_shown_are_understood(file, monkeypatch):
    """Command, task and options exist, and the values are of their kind."""
    monkeypatch.chdir(ROOT)
    for command in commands_of(file):
        commands.parse(command.replace("$HF", "--hf=DIR"))


def test_each_job_of_the_page_fits_its_devices():
    """Those that the sections of docs/running.md speak of, in the order of the commands."""
    page = (ROOT / "docs/running.md").read_text()
    found = re.findall(r"anchorjax train (?:.*\\\n)*[^\n'\"]*", page)
    terminals, node, slurm, open_mpi, pod, slices = [2, 2], [8], [64], [2], [32], [64]
    for command, devices in zip(found, [*terminals, *node, *slurm, *open_mpi, *pod, *slices], strict=True):
        config, _ = commands.parse(re.sub(r"\\\n\s*", " ", command)).arguments
        config.completed().check_devices(devices)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_that_are_named_exist(page):
    cli, evaluation = (importlib.import_module(f"anchorjax.{name}") for name in ("cli", "evaluation"))
    for command, task in re.findall(r"`anchorjax (\w+)(?: (\w+))?", page.read_text()):
        assert command in cli.COMMANDS, f"{name_of(page)}: anchorjax {command}"
        known = command != "evaluate" or task in {*evaluation.COMMANDS, "TASK", ""}
        assert known, f"{name_of(page)}: anchorjax evaluate {task}"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_recipes_that_are_named_exist(page):
    for recipe in re.findall(r"--config=([\w/.]+)", page.read_text()):
        if recipe not in ("path/to/mine.py", "mine", "file.py"):
            file = recipe if recipe.endswith(".py") else f"configs/{recipe}.py"
            assert (ROOT / file).exists(), f"{name_of(page)}: --config={recipe}"


def test_the_library_s_snippets_run():
    snippets = re.findall(
        r"^```python\n(.*?)^```", (ROOT / "docs/architecture.md").read_text(), re.MULTILINE | re.DOTALL
    )
    assert len(snippets) >= 2
    done = subprocess.run([sys.executable, "-c", "\n".join(snippets)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "segment" not in done.stderr and "[" in done.stdout


@pytest.mark.parametrize("file", CODE, ids=name_of)
def test_no_docstring_begins_with_of(file):
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node) or ""
            assert not text.startswith("Of "), f"{name_of(file)}: {text.splitlines()[0]}"


@pytest.mark.parametrize("file", [*CODE, *PAGES], ids=name_of)
def test_terms_are_those_of_the_field(file):
    for number, line in enumerate(file.read_text().splitlines(), 1):
        for word, term in REPLACED.items():
            assert not re.search(word, line), f"{name_of(file)}:{number}: write {term!r}: {line.strip()}"


# Keys of the Citation File Format 1.2.0, whose schema allows no others at the top.
CITATION_REQUIRED = {"cff-version", "message", "title", "authors"}
CITATION_ALLOWED = CITATION_REQUIRED | {
    *("abstract", "commit", "contact", "date-released", "doi", "identifiers", "keywords", "license", "license-url"),
    *("preferred-citation", "references", "repository", "repository-artifact", "repository-code", "type", "url"),
    "version",
}


def test_the_citation_is_of_this_version_and_has_the_keys_of_its_format():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert CITATION_REQUIRED <= citation.keys() <= CITATION_ALLOWED
    assert (citation["cff-version"], citation["version"]) == ("1.2.0", anchorjax.__version__)
    assert citation["license"] == tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["license"]
    works = [citation, *citation.get("references", []), *filter(None, [citation.get("preferred-citation")])]
    for work in works:
        assert work["title"] and work["authors"] and work["type"] in ("software", "article")
        for author in work["authors"]:
            person = author.keys() <= {"family-names", "given-names", "affiliation", "email", "orcid", "website"}
            assert author and (person or "name" in author), author
    assert {"arXiv:2411.13476"} == {one["value"] for work in works for one in work.get("identifiers", ())}
