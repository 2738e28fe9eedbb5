"""Open a page as a reader would and list what is wrong with it.

A page is loaded once, and then seen in four ways: light and dark, wide and narrow. Every rule of axe is asked of all four.
Most of the time would go into the contrast of text: a chapter has ten thousand pieces of coloured code in a few dozen
looks. So axe measures one of each look, see ASK_AXE.
"""

import importlib.resources
import re
from urllib.parse import urlsplit

AXE = (importlib.resources.files("axe_playwright_python") / "axe.min.js").read_text(encoding="utf-8")

WIDE, NARROW = 1400, 390    # a desktop and a phone, in CSS pixels
PATIENCE = 60_000           # milliseconds; a busy machine is slow, not wrong
# In this order, which needs one change of width only.
VIEWS = ((WIDE, "light"), (WIDE, "dark"), (NARROW, "dark"), (NARROW, "light"))

# What axe reports of the theme itself, not of the book: (rule, pattern of the element's selector, why it may stay).
THEME = [
    ("region", r"^\.only-(light|dark)$", "the logo in the sidebar stands outside the theme's landmarks"),
]

FOUND_IN_PAGE = r"""
() => {
  const faults = [];
  const name = e => e.outerHTML.slice(0, 120);
  document.querySelectorAll('mjx-merror').forEach(e => faults.push('TeX error: ' + e.textContent.slice(0, 80)));
  document.querySelectorAll('mjx-mtext').forEach(e => {
    if (getComputedStyle(e).color === 'rgb(255, 0, 0)') faults.push('red TeX: ' + e.textContent.slice(0, 80)); });
  document.querySelectorAll('.math').forEach(e => {
    if (!e.querySelector('mjx-container')) faults.push('mathematics not typeset: ' + e.textContent.slice(0, 80)); });
  const seen = {};
  document.querySelectorAll('img').forEach(e => {
    const alt = (e.getAttribute('alt') || '').trim();
    if (!alt) faults.push('image without alternative text: ' + name(e));
    else if (/\.(svg|png|jpe?g|gif)$|_images\//.test(alt)) faults.push('a file name as alternative text: ' + alt);
    if (e.closest('article')) {
      if (seen[alt]) faults.push('two images with the same alternative text: ' + alt);
      seen[alt] = true;
    }
    if (e.complete && e.naturalWidth === 0) faults.push('image does not load: ' + name(e));
  });
  return faults;
}
"""

TOO_WIDE = r"""
() => {
  const page = document.scrollingElement, room = page.clientWidth;
  if (page.scrollWidth <= room + 1) return [];
  const wide = [...document.querySelectorAll('article *')].filter(e => e.getBoundingClientRect().right > room + 1)
    .slice(0, 3).map(e => e.tagName + '.' + e.className);
  return ['the page is ' + page.scrollWidth + ' px wide where ' + room + ' are there: ' + wide.join(', ')];
}
"""

# Everything folded is opened, so that it is inspected too; nothing may be half faded in when colours are measured.
OPEN_ALL = r"""
() => {
  const style = document.createElement('style');
  style.textContent = '*, *::before, *::after { animation: none !important; transition: none !important }';
  document.head.append(style);
  document.querySelectorAll('details').forEach(e => { e.open = true; });
  document.querySelectorAll('.toggle-hidden').forEach(e => e.classList.remove('toggle-hidden'));
}
"""


THEME_IS = "scheme => [undefined, scheme].includes(document.documentElement.dataset.theme)"

# What axe finds: [[rule, selector, element], ...]. Of text's contrast it is asked one element for each look. A look is all that
# the contrast depends on: colour, size and weight of the letters, and the backgrounds and opacities of the element and of all
# that it stands in. What is placed freely may stand on something else, so each such element is a look of its own. Where axe
# can't say (an element is hidden, or covered), the next ones of the same look are asked, in the end all.
ASK_AXE = r"""
async () => {
  const grounds = new Map([[null, '']]);
  const ground = e => {
    if (!grounds.has(e)) {
      const s = getComputedStyle(e);
      const own = [s.backgroundColor, s.backgroundImage, s.opacity, s.filter, s.mixBlendMode].join(' ');
      const placed = ['absolute', 'fixed', 'sticky'].includes(s.position) ? ' alone' : '';
      const plain = !placed && own === 'rgba(0, 0, 0, 0) none 1 none normal';
      grounds.set(e, ground(e.parentElement) + (plain ? '' : '|' + own + placed));
    }
    return grounds.get(e);
  };
  const looks = new Map();
  document.body.querySelectorAll('*').forEach((e, number) => {
    const text = [...e.childNodes].map(n => n.nodeType === Node.TEXT_NODE ? n.data : '').join('').trim();
    const control = e.matches('input, select, textarea, button');
    if (text.length < 2 && !control) return;                        // axe never objects to a single letter,
    if (!e.checkVisibility({visibilityProperty: true})) return;     // nor to what is hidden
    const s = getComputedStyle(e), under = ground(e);
    const look = [under, s.color, s.fontSize, s.fontWeight, s.textShadow, s.webkitTextFillColor, s.webkitTextStroke,
                  control || under.includes(' alone') ? number : ''].join('|');
    if (!looks.has(look)) looks.set(look, []);
    looks.get(look).push(e);
  });

  const contrast = 'color-contrast', faults = [];
  axe.configure({rules: [{id: contrast, selector: '[data-measured]'}]});
  let open = [...looks.values()];
  for (const most of [1, 10, Infinity]) {
    const asked = open.flatMap(list => list.slice(0, most));
    asked.forEach(e => e.setAttribute('data-measured', ''));
    const said = await axe.run(document, {
      preload: false,               // axe would fetch the style sheets again, relative to the page instead of to themselves
      reporter: (results, options, done) => {      // axe's own would describe every element that passes
        results.forEach(rule => rule.violations.forEach(({node}) =>
          faults.push([rule.id, String(node.selector), node.element.outerHTML.replace(' data-measured=""', '').slice(0, 150)])));
        const one = results.find(rule => rule.id === contrast);
        done(new Set([...one.passes, ...one.violations].map(({node}) => node.element)));
      },
      ...(most > 1 && {runOnly: [contrast]}),
    });
    asked.forEach(e => e.removeAttribute('data-measured'));
    open = open.filter(list => list.length > most && !list.some(e => said.has(e)));
    if (!open.length) break;
  }
  return faults;
}
"""


def of_the_theme(rule, selector):
    return any(rule == known and re.search(pattern, selector) for known, pattern, _ in THEME)


def inspect(browser, url):
    """Return {kind of fault: [faults]} of one page, in all of its VIEWS; all lists empty for a page that is right."""
    home = urlsplit(url).netloc
    faults = {"outside requests": [], "console": [], "page": [], "width": [], "axe": []}
    context = browser.new_context(viewport={"width": WIDE, "height": 900}, color_scheme="light", reduced_motion="reduce")

    def gate(route):
        if urlsplit(route.request.url).netloc in (home, ""):
            route.continue_()
        else:
            faults["outside requests"].append(route.request.url)
            route.abort()

    context.route("**/*", gate)
    page = context.new_page()
    page.set_default_timeout(PATIENCE)
    page.on("console", lambda m: faults["console"].append(m.text) if m.type == "error" else None)
    page.on("pageerror", lambda error: faults["console"].append(str(error)))
    page.on("response", lambda r: faults["console"].append(f"{r.status} {r.url}") if r.status >= 400 else None)
    try:
        page.goto(url, wait_until="load")
        page.evaluate("async () => { if (window.MathJax && MathJax.startup) await MathJax.startup.promise }")
        page.evaluate(OPEN_ALL)
        page.evaluate(AXE)
        at = WIDE
        for width, scheme in VIEWS:
            page.emulate_media(color_scheme=scheme)
            page.wait_for_function(THEME_IS, arg=scheme)
            if width != at:
                page.set_viewport_size({"width": width, "height": 900})
                page.wait_for_timeout(500)  # the theme reacts to a new width after a pause
                at = width
            view = f"{scheme}, {width} px"
            faults["page"] += [f"{view}: {fault}" for fault in page.evaluate(FOUND_IN_PAGE)]
            if width == NARROW:
                faults["width"] += [f"{view}: {fault}" for fault in page.evaluate(TOO_WIDE)]
            faults["axe"] += [f"{view}: {rule}: {selector}: {element}" for rule, selector, element
                              in page.evaluate(ASK_AXE) if not of_the_theme(rule, selector)]
    finally:
        context.close()
    return faults
