"""Every built page in a browser: mathematics, figures, accessibility, phones, and not one request to the outside."""

from urllib.parse import urljoin

import pytest

from tests.pages.conftest import serving
from tests.pages.inspect import PATIENCE, inspect
from tools import book

# The largest first, so that two processes end together. index.html only sends on to the first page.
PAGES = [path.relative_to(book.HTML).as_posix()
         for path in sorted(book.HTML.rglob("*.html"), key=lambda path: (-path.stat().st_size, path))
         if path.name != "index.html" and "_static" not in path.parts and "_sources" not in path.parts]


def test_the_pages_are_there():
    import yaml
    from tools import env

    toc = yaml.safe_load((env.ROOT / "_toc.yml").read_text(encoding="utf-8"))
    files = [toc["root"]] + [entry["file"] for part in toc["parts"] for chapter in part["chapters"]
                             for entry in [chapter, *chapter.get("sections", [])]]
    missing = [name for name in files if f"{name}.html" not in PAGES]
    assert not missing


@pytest.mark.parametrize("page", PAGES)
def test_the_page_is_right(page, browser, site):
    faults = inspect(browser, f"{site}/{page}")
    found = [f"{kind}: {fault}" for kind, some in faults.items() for fault in some]
    assert not found, "\n".join(found)


def opened(browser, **options):
    page = browser.new_page(**options)
    page.set_default_timeout(PATIENCE)
    return page


def test_the_first_page_is_reached_from_the_index(browser, site):
    page = opened(browser)
    page.goto(f"{site}/index.html")
    page.wait_for_url("**/book/intro.html", wait_until="commit", timeout=5000)
    page.close()


def test_hints_open_and_their_mathematics_is_typeset(browser, site):
    """A hint is folded at first, opens at a click, and holds text that was rendered, not raw Markdown."""
    page = opened(browser)
    stub = next(name for name in PAGES if name.startswith("exercises/"))
    page.goto(f"{site}/{stub}", wait_until="domcontentloaded")
    hint = page.locator("details.hint").first
    assert hint.get_attribute("open") is None
    hint.locator("summary").click()
    assert hint.get_attribute("open") is not None
    page.close()


def test_the_stubs_can_be_downloaded(browser, site):
    page = opened(browser, java_script_enabled=False)       # a link needs none
    for name in (name for name in PAGES if name.startswith(("exercises/", "solutions/"))):
        page.goto(f"{site}/{name}", wait_until="domcontentloaded")
        link = page.locator("article a.download").first.get_attribute("href")
        answer = page.request.get(urljoin(page.url, link))
        assert answer.ok and answer.json()["nbformat"] == 4
        assert not any(cell.get("outputs") for cell in answer.json()["cells"]), f"{name} offers the solutions"
    page.close()


HEAD = "<!doctype html><html lang=en><head><title>t</title></head><body><main><article><h1>A page</h1>{}</article></main></body></html>"


@pytest.mark.parametrize("kind, body", [
    ("outside requests", '<img alt="A picture from elsewhere" src="http://example.org/x.png">'),
    ("console", "<script>console.error('broken')</script>"),
    ("console", "<script>nothing.there()</script>"),
    ("console", '<img alt="A picture that is missing" src="missing.png">'),
    ("page", '<img src="data:image/gif;base64,R0lGODlhAQABAAAAACw=">'),
    ("page", '<img alt="../_images/a.svg" src="data:image/gif;base64,R0lGODlhAQABAAAAACw=">'),
    ("page", '<p class="math">\\(x^2\\)</p>'),
    ("page", "<mjx-merror>Missing close brace</mjx-merror>"),
    ("page", '<mjx-mtext style="color: red">\\nocommand</mjx-mtext>'),
    ("width", '<div style="width: 600px">wide</div>'),
    ("axe", '<p style="color: #ccc; background: #fff">pale</p>'),
    ("axe", "<h4>A heading three levels too deep</h4><button></button>"),
    # A look is asked of one element only, but of the next where that one says nothing: hidden, a single letter, covered.
    ("axe", "".join(f'<p style="color: #ccc; {hidden}">{text}</p>' for hidden, text in
                    [("", "x")] * 15 + [("display: none", "hidden")] * 15 + [("", "pale")])),
    ("axe", '<style>p { color: #777 }</style><p>not quite pale</p><div style="background: #aaa"><p>on grey</p></div>'),
    ("axe", '<style>p { color: #777 }</style><p>not quite pale</p><div style="opacity: 0.5"><p>faded</p></div>'),
])
def test_a_fault_is_found(kind, body, browser, tmp_path):
    assert faults_of(body, browser, tmp_path)[kind]


IN_DARK = "<style>@media (prefers-color-scheme: dark) {{ body {{ background: #111; color: #eee }} {} }}</style>"
ON_A_PHONE = "<style>@media (max-width: 500px) {{ {} }}</style>"


@pytest.mark.parametrize("kind, body, view", [
    ("axe", IN_DARK.format("p { color: #333 }") + "<p>dark on dark</p>", "dark"),
    ("axe", IN_DARK.format("p { color: #333 }") + "<p>x</p><p>dark on dark</p>", "dark"),
    ("axe", IN_DARK.format("") + '<p style="color: #555; background: none">right in light only</p>', "dark"),
    ("axe", IN_DARK.format("p { color: #eee }") + '<p style="background: #fff">white on white</p>', "dark"),
    ("axe", IN_DARK.format("a { color: #ccc; text-decoration: none }") +
     '<p>A link that is like <a href="#x" id="x">the text around it</a> in dark.</p>', "dark"),
    ("axe", "<style>button { display: none }</style>" + IN_DARK.format("button { display: block }") + "<button></button>",
     "dark"),
    ("axe", ON_A_PHONE.format("p { color: #ccc }") + "<p>pale</p>", "390 px"),
    ("axe", IN_DARK.format("") + "<style>@media (max-width: 500px) and (prefers-color-scheme: dark) { p { color: #333 } }"
     "</style><p>dark on dark</p>", "dark, 390 px"),
    ("outside requests", IN_DARK.format("p { background-image: url(http://example.org/x.png) }") + "<p>pattern</p>", "http"),
    ("console", IN_DARK.format("p { background-image: url(missing.png) }") + "<p>pattern</p>", "404"),
    ("width", IN_DARK.format("p { width: 600px }") + "<p>wide</p>", "dark"),
    ("page", IN_DARK.format("mjx-mtext { color: red }") + "<mjx-mtext>\\nocommand</mjx-mtext>", "dark"),
])
def test_a_fault_in_one_view_only_is_found(kind, body, view, browser, tmp_path):
    """And in the others there is none."""
    found = faults_of(body, browser, tmp_path)[kind]
    assert found and all(view in fault for fault in found)


def test_a_good_page_has_no_fault(browser, tmp_path):
    assert not any(faults_of(IN_DARK.format("") + "<p>All is well.</p>", browser, tmp_path).values())


def faults_of(body, browser, directory):
    """What `inspect` says of a page of our own."""
    (directory / "page.html").write_text(HEAD.format(body))
    (directory / "favicon.ico").touch()
    server = serving(directory)
    try:
        return inspect(browser, f"{server.address}/page.html")
    finally:
        server.shutdown()
