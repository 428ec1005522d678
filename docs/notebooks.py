"""For mkdocs: notebooks lie outside of docs/; put them where pages link to them."""

from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

_FOLDER = Path(__file__).parents[1] / "experiments" / "notebooks"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds each notebook to the site, under notebooks/."""
    for path in sorted(_FOLDER.glob("*.ipynb")):
        name = f"notebooks/{path.name}"
        files.append(File.generated(config, name, abs_src_path=str(path)))
    return files
