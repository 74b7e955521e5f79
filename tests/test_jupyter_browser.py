"What the tests that drive JupyterLab lean on: a notebook runs in the page, errors come through, the kernel is this checkout's."

import os

import pytest
from jupyter_browser import ROOT, ask, notebook, run_all, set_theme, tell

pytestmark = pytest.mark.browser


def test_a_widget_goes_both_ways_in_both_themes(jupyter, chromium):
    with notebook(jupyter, chromium, ["import ipywidgets as w", "tick = w.Checkbox(description='tick'); tick"], "dark") as page:
        box = page.get_by_label("tick")
        box.check()
        page.wait_for_timeout(200)
        assert ask(page, "tick.value") is True
        tell(page, "tick.value = False")
        page.wait_for_function("() => !document.querySelector('.jp-OutputArea input[type=checkbox]').checked")
        dark = page.evaluate("() => getComputedStyle(document.body).getPropertyValue('--jp-layout-color1')")
        set_theme(page, "light")
        assert page.evaluate("() => getComputedStyle(document.body).getPropertyValue('--jp-layout-color1')") != dark


def test_the_kernel_imports_this_checkout_and_not_the_users_settings(jupyter, chromium):
    with notebook(jupyter, chromium, ["import os, vdmini"]) as page:
        assert ask(page, "vdmini.__file__") == str(ROOT / "vdmini/__init__.py")
        assert ask(page, "os.environ['IPYTHONDIR']").startswith(str(jupyter.folder.parent))
        kernel = ask(page, "os.getpid()")
    with pytest.raises(ProcessLookupError):
        os.kill(kernel, 0)


def test_an_error_in_a_cell_or_in_the_kernel_comes_through(jupyter, chromium):
    with notebook(jupyter, chromium, ["1 / 0"], run=False) as page:
        with pytest.raises(AssertionError, match="division by zero"):
            run_all(page)
        with pytest.raises(Exception, match="no_such_name"):
            ask(page, "no_such_name")
        with pytest.raises(Exception, match="no_such_name"):
            tell(page, "no_such_name")
