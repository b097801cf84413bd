"""The page: sound HTML, nothing from elsewhere, and what a real browser makes of it."""

import base64
import html.parser
import json
import re
import shutil
import subprocess

import fake
import pytest

import analyze
from common import page
from common.page import Heading, Picture, Points, Table, Text, to_html, to_markdown

WIDTHS = (360, 800, 1400)
VOID = {"meta", "link", "img"}


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> str:
    """The page of a whole experiment, a long name and a missing run among it."""
    root, out = tmp_path_factory.mktemp("runs"), tmp_path_factory.mktemp("report")
    small = {"count": 200, "epochs": 16}
    fake.write_experiment(root, 2, **small)
    fake.write_run(root, "a-method-with-a-name-of-thirty-eight-letters", 0, role="student", **small)
    fake.write_run(root, "baseline", 2, finished=False, **small)
    assert analyze.main(["--runs", str(root), "--out", str(out)]) == 1
    return (out / "report.html").read_text(encoding="utf-8")


class Page(html.parser.HTMLParser):
    """Every element with its attributes and its text; raises where tags do not match."""

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict]] = []
        self.text: dict[str, str] = {}  # all that stands in elements of one name
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        names = [name for name, _ in attributes]
        assert len(names) == len(set(names))
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        for tag in self.open:
            self.text[tag] = self.text.get(tag, "") + data

    def all(self, *tags: str) -> list[dict]:
        return [attributes for tag, attributes in self.elements if tag in tags]


@pytest.fixture(scope="module")
def parsed(report) -> Page:
    return Page(report)


def test_the_page_is_well_formed(report, parsed):
    assert report.startswith("<!doctype html>")
    assert parsed.all("html") == [{"lang": "en"}]
    assert parsed.text["title"] == parsed.text["h1"] == analyze.TITLE
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in parsed.all(
        "meta"
    )
    with pytest.raises(AssertionError):
        Page("<p><b>crossed</p></b>")


def test_every_picture_has_words_and_every_table_headers(parsed):
    pictures = parsed.all("img")
    assert len(pictures) > 12 and all(len(each["alt"]) > 20 for each in pictures)
    assert {each.get("scope") for each in parsed.all("th")} == {"col", "row"}
    tables, captions = parsed.all("table"), parsed.all("caption")
    assert len(tables) == len(captions) > 10


def test_tables_that_scroll_can_be_reached_by_keyboard_and_have_a_name(parsed):
    boxes = [each for each in parsed.all("div") if each["class"] == "scroll"]
    assert len(boxes) == len(parsed.all("table"))
    assert all(b["tabindex"] == "0" and b["role"] == "region" and b["aria-label"] for b in boxes)


def test_headings_are_in_order_and_the_contents_lead_to_them(parsed):
    levels = [int(tag[1]) for tag, _ in parsed.elements if re.fullmatch(r"h\d", tag)]
    assert levels[0] == 1 and all(b <= a + 1 for a, b in zip(levels, levels[1:], strict=False))
    anchors = [each["id"] for each in parsed.all("h2")]
    assert [each["href"] for each in parsed.all("a")] == [f"#{anchor}" for anchor in anchors]
    assert len(set(anchors)) == len(anchors) > 5


def test_the_headline_stands_before_the_contents(report):
    assert report.index("distillation ") < report.index("<nav") < report.index("<h2")


def test_nothing_in_the_page_comes_from_elsewhere(report, parsed):
    for _, attributes in parsed.elements:
        for name in ("src", "href", "srcset", "data", "action", "poster"):
            if name in attributes:
                assert re.match(r"#|data:", attributes[name]), attributes[name][:80]
    assert not parsed.all("script", "iframe", "object", "embed", "base")
    styles = parsed.text["style"] + "".join(each.get("style", "") for _, each in parsed.elements)
    assert "url(" not in styles and "@import" not in styles


def test_nothing_in_a_picture_comes_from_elsewhere(parsed):
    for picture in parsed.all("img"):
        kind, content = picture["src"].split(",", 1)
        assert kind == "data:image/svg+xml;base64"
        svg = base64.b64decode(content).decode()
        links = re.findall(r"""(?:href|src)=["'](.*?)["']|url\((.*?)\)""", svg)
        assert all(re.match(r"#|data:", a or b) for a, b in links)
        assert "<script" not in svg and "<text" not in svg  # letters are drawn: no font is needed


def test_text_is_text_and_not_markup():
    evil = '<script>alert("1")</script> & \'"'
    blocks = [
        Heading(evil),
        Text(evil),
        Points([evil]),
        Table(evil, [evil], [[evil]]),
        Picture("x", b"", b"", evil),
    ]
    found = Page(to_html(evil, blocks))
    assert not found.all("script") and found.all("img")[0]["alt"] == evil
    for tag in ("title", "h1", "h2", "p", "caption", "thead", "tbody", "figcaption"):
        assert found.text[tag] == evil
    assert found.text["li"] == 2 * evil  # in the contents, too


def test_markdown_tables_keep_their_columns():
    text = to_markdown("T", [Table("c", ["a|b", "c"], [["1|2", "3"]])], "figures")
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert [len(re.findall(r"(?<!\\)\|", row)) for row in rows] == [3, 3, 3]


def test_a_picture_of_a_recipe_with_a_blank_is_one_in_markdown_too():
    text = to_markdown("T", [Picture("curves-my (2)", b"", b"", "alt")], "figures")
    assert "![alt](figures/curves-my%20%282%29.png)" in text


def luminance(colour: str) -> float:
    digits = colour.lstrip("#")
    digits = "".join(2 * c for c in digits) if len(digits) == 3 else digits
    parts = [int(digits[k : k + 2], 16) / 255 for k in (0, 2, 4)]
    parts = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]


@pytest.mark.parametrize("mode", ["light", "dark"])
def test_letters_stand_out_from_the_paper(mode):
    """WCAG 2.1 AA: a contrast of 4.5 for text."""
    both = re.findall(r":root \{(.*?)\}", page.STYLE)
    colours = dict(re.findall(r"--(\w+): (#\w+)", both[mode == "dark"]))
    assert len(both) == 2
    for ink, paper in (("ink", "paper"), ("ink", "band"), ("link", "paper")):
        bright, dim = sorted((luminance(colours[ink]), luminance(colours[paper])), reverse=True)
        assert (bright + 0.05) / (dim + 0.05) >= 4.5


# ---------------------------------------------------------------- in a browser

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
browser = pytest.mark.skipif(
    BROWSER is None, reason="needs chromium, chromium-browser or google-chrome on the PATH"
)
# Three copies of the page, as wide as a phone, a tablet and a screen; it writes down how wide
# their contents are, what they asked for, and with which ink on which paper they are written.
FRAMES = """<!doctype html><title>frames</title><pre id="found"></pre>
{frames}
<script>
onload = () => {{
  found.textContent = JSON.stringify([...document.querySelectorAll("iframe")].map(frame => {{
    const page = frame.contentDocument, style = getComputedStyle(page.body);
    return {{width: page.documentElement.clientWidth,
             content: page.documentElement.scrollWidth,
             asked: page.defaultView.performance.getEntriesByType("resource").map(e => e.name),
             pictures: [...page.images].filter(image => image.naturalWidth > 0).length,
             colours: [style.color, style.backgroundColor]}};
  }}));
}};
</script>
"""


def open_in_browser(folder, page: str, *options: str) -> tuple[list[dict], list[str]]:
    """What the frames found, and the messages on the console."""
    (folder / "page.html").write_text(page, encoding="utf-8")
    frames = "\n".join(
        f'<iframe src="page.html" width="{width}" height="600" style="border: 0"></iframe>'
        for width in WIDTHS
    )
    (folder / "frames.html").write_text(FRAMES.format(frames=frames))
    done = subprocess.run(
        [
            BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
            f"--user-data-dir={folder / 'profile'}", "--allow-file-access-from-files",
            "--disable-background-networking", "--disable-component-update", "--disable-sync",
            "--disable-extensions", "--no-first-run", "--window-size=1500,900",
            "--proxy-server=127.0.0.1:9",  # nobody is there: a browser has calls of its own to make
            "--enable-logging=stderr", *options, "--dump-dom", (folder / "frames.html").as_uri(),
        ],
        capture_output=True, text=True, timeout=100,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = re.search(r'<pre id="found">(.+?)</pre>', done.stdout, re.DOTALL)
    return json.loads(found[1]), [line for line in done.stderr.splitlines() if ":CONSOLE" in line]


@browser
def test_a_browser_shows_the_page_whole_at_every_width(report, tmp_path):
    found, console = open_in_browser(tmp_path, report)
    assert [frame["width"] for frame in found] == list(WIDTHS)
    assert [frame["content"] for frame in found] == list(WIDTHS)  # nothing overflows
    assert {frame["pictures"] for frame in found} == {report.count("<img ")}
    assert all(url.startswith("data:") for frame in found for url in frame["asked"])
    assert console == []
    assert {tuple(frame["colours"]) for frame in found} == {
        ("rgb(27, 27, 27)", "rgb(255, 255, 255)")
    }


@browser
def test_a_browser_in_dark_mode_shows_a_dark_page(report, tmp_path):
    found, _ = open_in_browser(tmp_path, report, "--blink-settings=preferredColorScheme=0")
    assert {tuple(frame["colours"]) for frame in found} == {
        ("rgb(232, 232, 232)", "rgb(22, 24, 27)")
    }


@browser
def test_a_browser_would_have_told_of_faults(tmp_path):
    """The control: a page that overflows, asks for a file elsewhere, and fails in a script."""
    faulty = (
        '<!doctype html><div style="width: 900px">wide</div>'
        '<img src="http://example.invalid/x.png"><script>nothing.of.this()</script>'
    )
    found, console = open_in_browser(tmp_path, faulty)
    assert [frame["content"] for frame in found] == [908, 908, 1400]
    assert all("http://example.invalid/x.png" in frame["asked"] for frame in found)
    assert any("nothing is not defined" in line for line in console)
