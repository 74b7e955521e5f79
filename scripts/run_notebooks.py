"""Execute notebooks in place, top to bottom, leaving out cells flagged slow or gpu: python scripts/run_notebooks.py NOTEBOOK ...

A widget that brings a static picture is saved as that picture: without its kernel it would be "model not found".
"""

import re
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient

FLAGGED = re.compile(r"^#\|\s*(slow|gpu|notest)\b", re.MULTILINE)


class Client(NotebookClient):
    "A notebook client that leaves flagged cells as they are."

    async def async_execute_cell(self, cell, cell_index, **kwargs):
        "Execute one cell, unless it is flagged."
        if FLAGGED.search(cell.source):
            return cell
        return await super().async_execute_cell(cell, cell_index, **kwargs)


def static(notebook):
    "Leave of each widget what stays readable: its HTML, where it has some; no widget state."
    notebook.metadata.pop("widgets", None)
    for data in [o.data for cell in notebook.cells for o in cell.get("outputs", []) if "data" in o]:
        if "text/html" in data:
            data.pop("application/vnd.jupyter.widget-view+json", None)


for path in map(Path, sys.argv[1:]):
    notebook = nbformat.read(path, as_version=4)
    Client(notebook, timeout=900, kernel_name="python3", resources={"metadata": {"path": str(path.parent)}}).execute()
    static(notebook)
    nbformat.write(notebook, path)
    print(path, path.stat().st_size)
