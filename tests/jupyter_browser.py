"""JupyterLab in a real browser: a server for the test session, and a page on which a notebook was opened and run.

    @pytest.mark.browser
    def test_slider(jupyter, chromium):
        cells = ["import ipywidgets as w", "slider = w.IntSlider(); slider"]
        with notebook(jupyter, chromium, cells, theme="dark") as page:
            page.locator(".widget-slider").wait_for()
            tell(page, "slider.value = 7")
            assert ask(page, "slider.value") == 7

The fixture `jupyter` (tests/conftest.py) starts one server a session; each `notebook` has a browser context and a kernel of
its own, and the kernel imports this checkout. A cell that raises fails the test with the cell's traceback.
"""

import ast
import json
import os
import secrets
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlencode
from uuid import uuid4

import nbformat

ROOT = Path(__file__).resolve().parent.parent
SETTINGS = {  # all cells are in the page, seen or not, so that a test finds what it asks for
    "@jupyterlab/notebook-extension/tracker": dict(windowingMode="none"),
    "@jupyterlab/apputils-extension/notification": dict(fetchNews="false", checkForUpdates=False),
}
OPTIONS = (
    "--no-browser --ServerApp.port=0 --LabApp.expose_app_in_browser=True --LabApp.news_url= "
    "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate --LabApp.extension_manager=readonly"
).split()
PANEL = "jupyterapp.shell.currentWidget"
READY = f"""() => {{
    const s = window.jupyterapp && {PANEL}?.sessionContext
    return !!s?.isReady && s.session?.kernel?.connectionStatus === 'connected' && s.session.kernel.status === 'idle'
}}"""
ERRORS = f"""() => {PANEL}.content.model.toJSON().cells.flatMap(c => c.outputs ?? [])
    .filter(o => o.output_type === 'error').map(o => o.traceback.join('\\n'))"""
EXECUTE = f"""async ([code, expression]) => {{
    const kernel = {PANEL}.sessionContext.session.kernel
    const asked = expression ? {{ user_expressions: {{ value: `repr(${{expression}})` }} }} : {{}}
    const content = (await kernel.requestExecute({{ code, silent: false, store_history: false, ...asked }}).done).content
    const value = content.user_expressions?.value
    if (content.status !== 'ok' || value?.status === 'error')
        throw new Error((value?.traceback ?? content.traceback).join('\\n'))
    return value?.data['text/plain']
}}"""


@dataclass(frozen=True)
class Jupyter:
    "A running server."

    url: str  # ends in a slash
    token: str
    folder: Path  # what it serves


def _environment(home: Path) -> dict[str, str]:
    "The environment without a trace of the user's Jupyter: every folder is below `home`."
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("JUPYTER", "IPYTHON"))}
    names = "JUPYTER_CONFIG_DIR JUPYTER_DATA_DIR JUPYTER_RUNTIME_DIR JUPYTERLAB_SETTINGS_DIR JUPYTERLAB_WORKSPACES_DIR IPYTHONDIR"
    own = {name: str(home / name.lower()) for name in names.split()}
    for folder in own.values():
        Path(folder).mkdir(parents=True)
    for name, values in SETTINGS.items():
        path = Path(own["JUPYTERLAB_SETTINGS_DIR"], f"{name}.jupyterlab-settings")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(values))
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return kept | own | dict(PYTHONPATH=os.pathsep.join(paths), OMP_NUM_THREADS="1")


def _address(server: subprocess.Popen, runtime: Path, log: Path, timeout_s: float = 60) -> str:
    "Where the server listens, from the file that it writes once it does."
    facts, until = runtime / f"jpserver-{server.pid}.json", time.monotonic() + timeout_s
    while time.monotonic() < until and server.poll() is None:
        if facts.exists() and (text := facts.read_text()):
            return json.loads(text)["url"]
        time.sleep(0.1)
    raise RuntimeError(f"JupyterLab did not start:\n{log.read_text()[-3000:]}")


def _stop(server: subprocess.Popen) -> None:
    "Ask the server to end, with its kernels; then end whatever is left of its process group."
    server.terminate()
    try:
        server.wait(15)
    except subprocess.TimeoutExpired:
        pass
    try:
        os.killpg(server.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    server.wait()


@contextmanager
def serve(
    home: Path,  # an empty folder: the server's log, settings and notebooks
):  # yields a Jupyter
    "A JupyterLab server on a free port, with a token, apart from the user's own settings; it is gone afterwards."
    token, folder, log, env = secrets.token_hex(16), home / "notebooks", home / "server.log", _environment(home)
    folder.mkdir()
    command = [sys.executable, "-m", "jupyterlab", *OPTIONS, f"--ServerApp.root_dir={folder}"]
    if os.geteuid() == 0:
        command.append("--allow-root")
    with log.open("w") as out:
        server = subprocess.Popen(
            command, env=env | dict(JUPYTER_TOKEN=token), stdout=out, stderr=out, cwd=folder, start_new_session=True
        )
    try:
        yield Jupyter(_address(server, Path(env["JUPYTER_RUNTIME_DIR"]), log), token, folder)
    finally:
        _stop(server)


def write_notebook(
    path: Path,
    cells: list[str],  # the sources of code cells
) -> Path:
    "A notebook that names its kernel: without one JupyterLab would ask for it, and the question stands in the way."
    made = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in cells])
    made.metadata.kernelspec = dict(name="python3", display_name="Python 3", language="python")
    nbformat.write(made, path)
    return path


@contextmanager
def notebook(
    jupyter: Jupyter,  # the fixture
    browser,  # the fixture `chromium`
    cells: list[str] | Path,  # the sources of code cells, or a notebook, which is copied
    theme: str = "light",  # or "dark"
    width: int = 1280,  # of the window, pixels
    height: int = 900,
    run: bool = True,  # run all cells, or only open it
    timeout_s: float = 120,  # for the opening and for the running
):  # yields a Playwright page
    "Open a notebook in JupyterLab with a live kernel, run all its cells, and close both afterwards."
    path = jupyter.folder / f"{uuid4().hex[:8]}.ipynb"
    path.write_text(cells.read_text()) if isinstance(cells, Path) else write_notebook(path, cells)
    context = browser.new_context(viewport=dict(width=width, height=height))
    try:
        page = context.new_page()
        asked = urlencode(dict(token=jupyter.token, reset=""))
        page.goto(f"{jupyter.url}lab/workspaces/{path.stem}/tree/{path.name}?{asked}")
        page.wait_for_function(READY, timeout=timeout_s * 1000)
        set_theme(page, theme)
        page.evaluate("() => { if (!jupyterapp.shell.leftCollapsed) jupyterapp.shell.collapseLeft() }")
        if run:
            run_all(page, timeout_s)
        yield page
        page.evaluate(f"() => {PANEL}.sessionContext.shutdown()")
    finally:
        context.close()


def run_all(page, timeout_s: float = 120) -> None:
    "Run every cell and wait for the last; the first cell that raises fails the test, with its traceback."
    page.evaluate("() => { jupyterapp.commands.execute('notebook:run-all-cells').then(() => window.ran = true) }")
    page.wait_for_function("() => window.ran", timeout=timeout_s * 1000)
    errors = page.evaluate(ERRORS)
    assert not errors, errors[0]


def set_theme(page, theme: str) -> None:  # "light" or "dark"
    "JupyterLab's own light or dark theme."
    name = f"JupyterLab {theme.title()}"
    page.evaluate("name => jupyterapp.commands.execute('apputils:change-theme', { theme: name })", name)
    page.wait_for_function("name => document.body.dataset.jpThemeName === name", arg=name)


def tell(page, code: str) -> None:
    "Run code in the page's kernel, outside the notebook's cells; an error there is an error here."
    page.evaluate(EXECUTE, [code, ""])


def ask(page, expression: str):
    "The value of an expression in the page's kernel: any Python literal."
    return ast.literal_eval(ast.literal_eval(page.evaluate(EXECUTE, ["", expression])))
