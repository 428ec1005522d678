"""A study made into a bundle that a stranger can check and repeat; imports no JAX."""

import importlib.metadata
import importlib.util
import json
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import adaprec_jax
from adaprec_jax.runs import environment, imports, store
from adaprec_jax.runs.errors import InputError, writing
from adaprec_jax.studies import bundle, states
from adaprec_jax.studies.states import Found
from adaprec_jax.studies.study import Study

_SEEDS = 3  # fewer are called exploratory
_OF_SESSION = ("began", "pack")
_COPIED = (
    store.CONFIG, store.ENVIRONMENT, store.STATUS, store.METRICS, store.PACK,
)  # fmt: skip


class Terms(NamedTuple):
    """What is said of a bundle by the one who publishes it.

    Attributes:
        authors: Their names, for the citation.
        licence: Of the data, as an SPDX identifier.
        exploratory: Whether fewer than three seeds are accepted, and said.
        report: A folder to go with it; None for none.
    """

    authors: Sequence[str] = ("Anonymous",)
    licence: str = "CC-BY-4.0"
    exploratory: bool = False
    report: Path | None = None


def publish(study: Study, out: Path, target: Path, terms: Terms) -> Path:
    """Writes the bundle of a study, whole or not at all.

    Args:
        study: The study; every run has a result.
        out: The folder of runs.
        target: The bundle's folder, which does not exist.
        terms: What else is said of it.

    Returns:
        The bundle.

    Raises:
        InputError: Holes, uncommitted code, several environments, too few seeds, or a
            folder that is there or cannot be written.
    """
    found = states.look(study, out)
    faults = [*_faults(study, found, terms)]
    if target.exists():
        faults.append(f"{target} is there already; a bundle is never changed.")
    if terms.report is not None and not terms.report.is_dir():
        faults.append(f"There is no folder {terms.report} with a report.")
    if faults:
        raise InputError(*faults)
    with writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".bundle") as made:
            folder = Path(made) / "bundle"
            _write(folder, study, found, terms)
            bundle.check(folder)
            folder.rename(target)
    return target


def _faults(study: Study, found: Sequence[Found], terms: Terms) -> Iterator[str]:
    """Yields a sentence for each reason not to publish."""
    missing = [each for each in found if not store.is_over(each.state)]
    if missing:
        first = missing[0]
        yield (
            f"{len(missing)} of {len(found)} runs have no result, the first is "
            f"{first.cell.experiment.name} seed {first.cell.seed} ({first.state}); "
            f"`adaprec status {study.name}` lists them."
        )
        return
    sessions = [
        session for each in found for session in store.record(each.directory).sessions
    ]
    if any(session.get("uncommitted") for session in sessions):
        yield "Some runs were trained with uncommitted code; commit it and train again."
    kept = [
        {name: value for name, value in session.items() if name not in _OF_SESSION}
        for session in sessions
    ]
    for session in kept[1:]:
        if different := [*environment.differences(kept[0], session)]:
            yield f"The runs mix environments: {different[0]} in another run."
            break
    fewest = min(sum(n.values()) for n in states.by_arm(found).values())
    if fewest < _SEEDS and not terms.exploratory:
        yield (
            f"An arm has {fewest} seeds, fewer than {_SEEDS}; --exploratory publishes "
            "them as what they are."
        )


def _write(folder: Path, study: Study, found: Sequence[Found], terms: Terms) -> None:
    for each in found:
        there = folder / bundle.RUNS / each.directory.name
        there.mkdir(parents=True)
        for name in _COPIED:
            if (each.directory / name).is_file():
                shutil.copyfile(each.directory / name, there / name)
    cells = [
        {
            "arm": cell.arm,
            "seed": cell.seed,
            "run_id": cell.run_id,
            "config": cell.experiment.model_dump(mode="json"),
        }
        for cell in study.cells
    ]
    _write_json(folder / bundle.STUDY, {"name": study.name, "cells": cells})
    session = store.record(found[0].directory).sessions[-1]
    own = {name: value for name, value in session.items() if name not in _OF_SESSION}
    _write_json(folder / bundle.ENVIRONMENT, own)
    (folder / bundle.LOCK).write_text(_lock(), encoding="utf-8")
    _write_code(folder / bundle.CODE, study)
    if terms.report is not None:
        shutil.copytree(terms.report, folder / bundle.REPORT)
    (folder / bundle.CITATION).write_text(_citation(study, terms), encoding="utf-8")
    (folder / bundle.CHECKLIST).write_text(
        _checklist(study, found, own, terms), encoding="utf-8"
    )
    _write_json(folder / bundle.CRATE, _crate(folder, study, found, terms))
    (folder / bundle.SUMS).write_text(bundle.sums(folder), encoding="utf-8")


def _write_code(folder: Path, study: Study) -> None:
    """Writes the source of somebody's own pieces as text, and where it comes from."""
    targets = {
        target
        for cell in study.cells
        for target in imports.targets(cell.experiment.model_copy(update={"sinks": ()}))
    }
    if not targets:
        return
    folder.mkdir()
    origins = {target: imports.origin(target) for target in sorted(targets)}
    _write_json(folder / "origins.json", origins)
    for target in origins:
        module = target.partition(":")[0]
        spec = importlib.util.find_spec(module)
        if spec and spec.origin:
            shutil.copyfile(spec.origin, folder / f"{module}.py.txt")


def _lock() -> str:
    """Returns the pinned requirements: those of the checkout, else what is here."""
    path = Path(adaprec_jax.__file__).parents[1] / bundle.LOCK
    if path.is_file():
        return path.read_text(encoding="utf-8")
    pinned = {
        f"{each.metadata['Name'].lower()}=={each.version}"
        for each in importlib.metadata.distributions()
    }
    return "".join(f"{line}\n" for line in sorted(pinned))


def _citation(study: Study, terms: Terms) -> str:
    authors = "".join(f"  - name: {json.dumps(name)}\n" for name in terms.authors)
    return (
        "cff-version: 1.2.0\n"
        f"title: {json.dumps(f'Runs of the study {study.name}')}\n"
        'message: "If you use these results, please cite them as below."\n'
        "type: dataset\n"
        f"authors:\n{authors}"
        f"license: {json.dumps(terms.licence)}\n"
        "references:\n"
        "  - type: software\n"
        '    title: "adaprec_jax: precision schedules for JAX"\n'
        f"    version: {json.dumps(adaprec_jax.__version__)}\n"
        '    authors:\n      - name: "The adaprec_jax authors"\n'
    )


def _checklist(
    study: Study, found: Sequence[Found], own: dict[str, Any], terms: Terms
) -> str:
    """Returns the questions that reviewers ask, answered from the runs."""
    counts, arms = states.count(found), states.by_arm(found)
    seeds = sorted({sum(n.values()) for n in arms.values()})
    data = sorted({store.record(each.directory).data for each in found})
    first = study.cells[0].experiment
    answers = {
        "How many runs, arms and seeds?": f"{len(found)} runs, {len(arms)} arms, "
        f"{' or '.join(map(str, seeds))} seeds for each"
        + (" (exploratory)" if seeds[0] < _SEEDS else ""),
        "Are runs missing?": "No: each has a result, and none was left out.",
        "How many diverged?": f"{counts['diverged']}; each is recorded as a result.",
        "Which settings had each run?": f"`{bundle.RUNS}/*/{store.CONFIG}`, complete",
        "Which examples were used, and which for testing?": "fingerprints "
        + ", ".join(f"`{each}`" for each in data)
        + "; the split is a function of the seed",
        "When was the test set read?": "once in each run, after its last step",
        "On what hardware?": f"{own.get('device')}, {own.get('cpu')}",
        "With which versions?": f"`{bundle.ENVIRONMENT}`, `{bundle.LOCK}`",
        "With which code?": f"commit {own.get('commit') or 'of the installed version'}"
        ", without changes that were not committed",
        "How much was computed?": f"{sum(o.step for o in _outcomes(found)):,} steps; "
        f"{first.batch_size} examples in each of the first arm",
        "How is it repeated?": "`adaprec reproduce BUNDLE`",
        "Under which licence?": terms.licence,
    }
    lines = [f"# Reproducibility checklist of {study.name}", ""]
    lines += [f"- [x] {question}\n  {answer}" for question, answer in answers.items()]
    return "\n".join([*lines, ""])


def _outcomes(found: Sequence[Found]) -> list[store.Outcome]:
    return [each.outcome for each in found if each.outcome]


def _crate(
    folder: Path, study: Study, found: Sequence[Found], terms: Terms
) -> dict[str, Any]:
    """Returns the description that RO-Crate 1.1 asks for."""
    began = [
        session["began"]
        for each in found
        for session in store.record(each.directory).sessions
    ]
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    names = [path.relative_to(folder).as_posix() for path in files]
    people = [
        {"@id": f"#author-{k}", "@type": "Person", "name": name}
        for k, name in enumerate(terms.authors)
    ]
    about = {
        "@id": bundle.CRATE,
        "@type": "CreativeWork",
        "conformsTo": {"@id": "https://w3id.org/ro/crate/1.1"},
        "about": {"@id": "./"},
    }
    root = {
        "@id": "./",
        "@type": "Dataset",
        "name": f"Runs of the study {study.name}",
        "description": f"{len(found)} training runs under precision schedules.",
        "datePublished": max(began)[:10],
        "license": terms.licence,
        "author": [{"@id": each["@id"]} for each in people],
        "hasPart": [{"@id": name} for name in names],
    }
    parts = [
        {
            "@id": name,
            "@type": "File",
            "contentSize": str(path.stat().st_size),
            "sha256": bundle.digest(path),
        }
        for name, path in zip(names, files, strict=True)
    ]
    return {
        "@context": "https://w3id.org/ro/crate/1.1/context",
        "@graph": [about, root, *people, *parts],
    }


def _write_json(path: Path, tree: Any) -> None:
    text = json.dumps(tree, indent=2) + "\n"
    path.write_text(text, encoding="utf-8")
