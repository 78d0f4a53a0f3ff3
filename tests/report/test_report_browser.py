"""The page of the results in a real browser: sort, filter, reveal, keyboard, contrast, and no request to anywhere."""

import json
import shutil
import time
from pathlib import Path

import pytest

from bench.report.page import rebuild
from tests.report.test_report import EVIL, PROMPTS, contrast, text_of, with_texts

pytestmark = pytest.mark.browser

QUIET = ("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync")  # fmt: skip
SIZES = {"desktop": (1280, 900), "phone": (390, 844)}


def texts(method: str, i: int, j: int) -> str:
    return f"{text_of(method, i, j)} {EVIL}"


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("browser")
    with_texts(folder, text=texts)
    return rebuild(folder).path


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    """One browser; all that it asks for and all that it complains of is looked at in the end."""
    webdriver = pytest.importorskip("selenium.webdriver")
    programs = [shutil.which(name) for name in ("chromium", "chromedriver")]
    if None in programs:
        pytest.skip("needs chromium and chromedriver: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = programs[0]
    for one in (*QUIET, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(one)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    service = webdriver.chrome.service.Service(programs[1])  # named, so that selenium looks for none
    driver = webdriver.Chrome(options=options, service=service)
    yield driver
    driver.quit()


class Browser:
    """The page, opened anew, with what tests do to it."""

    def __init__(self, driver, url: str, size: str = "desktop", scheme: str = "light", fragment: str = "") -> None:
        self.driver = driver
        width, height = SIZES[size]
        phone = size == "phone"
        self.cdp("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=phone)
        features = {"prefers-color-scheme": scheme, "prefers-reduced-motion": "reduce"}
        self.cdp("Emulation.setEmulatedMedia", features=[{"name": k, "value": v} for k, v in features.items()])
        driver.get("about:blank")
        driver.get(url + fragment)

    def cdp(self, command: str, **arguments) -> dict:
        return self.driver.execute_cdp_cmd(command, arguments)

    def script(self, code: str, *arguments):
        return self.driver.execute_script(code, *arguments)

    def one(self, selector: str):
        return self.driver.find_element("css selector", selector)

    def all(self, selector: str) -> list:
        return self.driver.find_elements("css selector", selector)

    def press(self, *keys: str) -> None:
        """Keys to whatever has the focus."""
        self.driver.switch_to.active_element.send_keys(*keys)

    def focus(self, element) -> None:
        self.script("arguments[0].focus()", element)

    @property
    def focused(self) -> str:
        return self.driver.switch_to.active_element.text

    def methods(self) -> list[str]:
        """The rows that are shown, in their order."""
        return [one.text for one in self.all(".leaderboard tbody th a") if one.is_displayed()]

    def cells(self, title: str) -> list:
        """The cells of a column, shown or not."""
        heads = [one.get_attribute("textContent") for one in self.all(".leaderboard thead th")]
        rows = self.all(".leaderboard tbody tr")
        return [row.find_elements("css selector", ":scope > *")[heads.index(title)] for row in rows]

    def column(self, title: str) -> list[str]:
        """The first line of each cell."""
        return [cell.text.split("\n")[0] for cell in self.cells(title)]

    def head(self, title: str):
        return next(one for one in self.all(".leaderboard thead th") if one.get_attribute("textContent") == title)

    def bodies(self) -> list[str]:
        """The texts that are shown, to the letter."""
        return [one.get_attribute("textContent") for one in self.all(".sample .body") if one.is_displayed()]


@pytest.fixture
def browser(chromium, report) -> Browser:
    return Browser(chromium, report.as_uri())


KEYS = {"enter": "\ue007", "space": " ", "tab": "\ue004", "escape": "\ue00c"}
ORDER = ["Unsteered", "Random direction (2 fits)", "CAA", "DeTox (ProFS)"]


# -- leaderboard -----------------------------------------------------------------------------------------------------


def test_the_head_sorts_by_mouse_and_by_keyboard(browser):
    assert browser.methods() == ORDER
    head = browser.head("toxicity k5")
    button = head.find_element("css selector", "button")
    button.click()
    rising = browser.column("toxicity k5")
    assert head.get_attribute("aria-sort") == "ascending" and rising == sorted(rising) and len(set(rising)) > 2
    assert "by toxicity k5, ascending" in browser.one(".status").text
    browser.press(KEYS["enter"])  # the button kept the focus
    assert head.get_attribute("aria-sort") == "descending" and browser.column("toxicity k5") == rising[::-1]
    browser.press(KEYS["space"])
    assert head.get_attribute("aria-sort") is None and browser.methods() == ORDER


def test_numbers_are_sorted_as_numbers_and_missing_comes_last(browser):
    for title, turns in (("change", 1), ("rank", 1), ("rank", 2)):
        browser.driver.refresh()
        for _ in range(turns):
            browser.head(title).find_element("css selector", "button").click()
        values = browser.column(title)
        known = [float(one.rstrip("*").replace("−", "-")) for one in values if one != "–"]
        assert values[len(known) :] == ["–"] * (len(values) - len(known)) and len(known) < len(values)
        assert known == sorted(known, reverse=turns == 2)


def test_only_one_column_is_sorted_by(browser):
    for title in ("change", "method"):
        browser.head(title).find_element("css selector", "button").click()
    assert len(browser.all(".leaderboard [aria-sort]")) == 1 and browser.methods() == sorted(ORDER)


def test_filter_by_text_and_family(browser):
    box = browser.one(".filter")
    box.send_keys("CAA")
    assert browser.methods() == ["CAA"] and browser.one(".status").text == "1 of 4 rows"
    box.clear()
    box.send_keys("no feasible")  # a note
    assert browser.methods() == ["DeTox (ProFS)"]
    box.send_keys(" of this kind")
    assert browser.methods() == [] and browser.one(".status").text == "0 of 4 rows"
    box.clear()
    box.send_keys(" ")
    browser.one(".family option:nth-child(2)").click()
    family = browser.one(".family option:checked").text
    assert family == "activation" and browser.methods() == ["Random direction (2 fits)", "CAA"]


def test_columns_can_be_chosen(browser):
    browser.one(".chooser summary").click()
    boxes = {one.text: one.find_element("css selector", "input") for one in browser.all(".choices label")}
    assert boxes["rank"].is_selected() and not boxes["fluency perplexity"].is_selected()
    browser.focus(boxes["fluency perplexity"])
    browser.press(KEYS["space"])
    assert all(float(one) > 1 for one in browser.column("fluency perplexity"))
    boxes["rank"].click()
    assert not browser.head("rank").is_displayed()
    assert not any(cell.is_displayed() for cell in browser.cells("rank"))


# -- pages -----------------------------------------------------------------------------------------------------------


def test_a_row_leads_to_its_page(browser, report, chromium):
    (link,) = [one for one in browser.all(".leaderboard tbody a") if one.text == "CAA"]
    browser.focus(link)
    browser.press(KEYS["enter"])
    target = link.get_attribute("href").rpartition("#")[2]
    opened = browser.all("details.page[open]")
    assert [one.get_attribute("id") for one in opened] == [target]
    assert "Every metric" in opened[0].text and "Chosen: strength 4" in opened[0].text
    assert browser.focused.startswith("CAA")  # the next key goes on from there
    top = browser.script("return arguments[0].getBoundingClientRect().top", opened[0])
    assert -1 <= top < 400
    direct = Browser(chromium, report.as_uri(), fragment=f"#{target}")
    assert len(direct.all("details.page[open]")) == 1


def test_all_pages_open_and_close(browser):
    for name, expected in (("unfold", 4), ("fold", 0)):
        browser.one(f".{name}").click()
        assert len(browser.all("details.page[open]")) == expected


# -- texts -----------------------------------------------------------------------------------------------------------


def test_a_text_is_shown_when_its_button_is_pressed(browser):
    assert "written by" not in browser.one("body").text and "The river number" not in browser.one("body").text
    assert browser.script("return document.querySelector('.list').textContent.includes('written by')") is False
    button = browser.one(".sample button[aria-expanded]")
    assert button.get_attribute("textContent") == "Show prompt 1"
    button.click()
    assert browser.bodies() == [PROMPTS[0]] and button.get_attribute("aria-expanded") == "true"
    browser.press(KEYS["enter"])
    assert browser.bodies() == [] and button.get_attribute("aria-expanded") == "false"
    second = browser.all(".pair > div:nth-child(2) .sample button")[1]
    browser.focus(second)
    browser.press(KEYS["space"])
    assert browser.bodies() == [texts("caa", 0, 1)]
    assert not browser.all("x-evil") and not browser.all("[onclick]")
    assert browser.one(".judged").text == "profanity_check 0.00"


def test_all_texts_are_shown_after_a_warning_only(browser):
    reveal = browser.one(".reveal-all")
    for way in ("escape", "no"):
        reveal.click()
        assert "sexual violence" in browser.one("dialog").text and "35 prompts and texts" in browser.one("dialog").text
        assert browser.focused == "Keep them hidden"
        if way == "escape":
            browser.press(KEYS["escape"])
        else:
            browser.press(KEYS["enter"])
        assert not browser.one("dialog").is_displayed() and browser.bodies() == []
    reveal.click()
    browser.one("dialog [value=yes]").click()
    assert len(browser.bodies()) == 35  # 5 prompts, each with 3 texts of two methods
    browser.one(".hide-all").click()
    assert browser.bodies() == []
    reveal.click()
    browser.one("dialog [value=yes]").click()
    browser.one(".on").click()  # what is on the next page was not asked for
    assert browser.bodies() == [] and "Prompts 6 to 10 of 40" in browser.one(".texts .status").text


def test_methods_prompts_and_pages_are_chosen(browser):
    left, right, size = browser.all(".texts select:not(label[hidden] select)")
    names = [one.text for one in left.find_elements("css selector", "option")]
    assert names == ["Unsteered", *(f"Random direction (2 fits), fit seed {i}" for i in (0, 1)), "CAA", "DeTox (ProFS)"]
    left.send_keys("DeTox")
    size.send_keys("20")
    status = browser.one(".texts .status")
    assert "Prompts 1 to 20 of 40, 3 texts each" in status.text and "stored are 60 prompts with 5 texts" in status.text
    heads = [one.text for one in browser.all(".pair h4")]
    assert heads == ["DeTox (ProFS)", "CAA"] * 20
    browser.one(".on").click()
    assert "Prompts 21 to 40" in status.text and not browser.one(".on").is_enabled()
    browser.all(".pair > div:first-child .sample button")[0].click()
    assert browser.bodies() == [texts("detox", 20, 0)]
    browser.one(".back").click()
    assert "Prompts 1 to 20" in status.text and not browser.one(".back").is_enabled()


# -- how it looks ----------------------------------------------------------------------------------------------------


OPEN = """
for (const one of document.querySelectorAll('details')) one.open = true;
for (const one of document.querySelectorAll('.sample button')) one.click();
"""
SEEN = """
const solid = (element) => {
  for (let one = element; one; one = one.parentElement) {
    const colour = getComputedStyle(one).backgroundColor;
    if (colour !== 'rgba(0, 0, 0, 0)') return colour;
  }
  return getComputedStyle(document.documentElement).colorScheme;
};
const found = {};
const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (walker.nextNode()) {
  const element = walker.currentNode.parentElement;
  if (!walker.currentNode.data.trim() || !element.checkVisibility() || element.closest('script, style, dialog, option'))
    continue;
  const key = getComputedStyle(element).color + ' on ' + solid(element);
  found[key] ??= element.outerHTML.slice(0, 120);
}
return found;
"""


LEFT = """
const start = arguments[0].getBoundingClientRect().left;
return [...document.querySelectorAll('.leaderboard tr > :first-child')].map((one) =>
  one.getBoundingClientRect().left - start);
"""
UNNAMED = """
return [...document.querySelectorAll('button, a, input, select, [tabindex]')].filter((one) =>
  !(one.textContent.trim() || one.ariaLabel || one.labels?.length)).map((one) => one.outerHTML);
"""


def hexadecimal(colour: str) -> str:
    parts = [int(one) for one in colour.removeprefix("rgb(").removesuffix(")").split(",")]
    return "#" + "".join(f"{one:02x}" for one in parts)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
def test_every_text_has_contrast_and_the_page_keeps_to_its_width(chromium, report, size, scheme):
    browser = Browser(chromium, report.as_uri(), size, scheme)
    browser.script(OPEN)
    found = browser.script(SEEN)
    assert len(found) >= 6
    for pair, example in found.items():
        ink, paper = map(hexadecimal, pair.split(" on "))
        assert contrast(ink, paper) >= 4.5, f"{pair}: {example}"
    paper = hexadecimal(browser.script("return getComputedStyle(document.body).backgroundColor"))
    assert (contrast(paper, "#000000") < 3) == (scheme == "dark")
    assert browser.script("return document.documentElement.scrollWidth") <= SIZES[size][0]


def test_a_wide_table_scrolls_inside_itself_and_its_names_stay(chromium, report):
    browser = Browser(chromium, report.as_uri(), "phone")
    frame = browser.one(".board .scroll")
    widths = browser.script("return [arguments[0].scrollWidth, arguments[0].clientWidth]", frame)
    assert widths[0] > widths[1] > 300
    browser.focus(frame)  # by keyboard too
    browser.script("arguments[0].scrollLeft = 300", frame)
    left = browser.script(LEFT, frame)
    assert browser.script("return arguments[0].scrollLeft", frame) == 300 and all(0 <= one <= 2 for one in left)


def test_whatever_has_the_focus_is_seen_and_tab_reaches_it(browser):
    assert browser.script("return document.activeElement === document.body")
    seen = []
    for _ in range(14):
        browser.press(KEYS["tab"])
        outline = browser.script("const style = getComputedStyle(document.activeElement);"
                                 "return [style.outlineStyle, parseFloat(style.outlineWidth)]")  # fmt: skip
        assert outline[0] != "none" and outline[1] >= 2
        seen.append(browser.focused.replace("\n", " "))
    assert seen[:5] == ["Skip to the results", "leaderboard", "figures", "methods", "texts side by side"]
    assert "Columns" in seen and "method" in seen and "toxicity k5" in seen
    assert browser.script(UNNAMED) == []


def test_it_prints_whole_tables(browser):
    browser.cdp("Emulation.setEmulatedMedia", media="print")
    assert browser.script("return getComputedStyle(document.querySelector('.board .scroll')).overflowX") == "visible"
    assert not browser.one(".filter").is_displayed()
    browser.cdp("Emulation.setEmulatedMedia", media="")


# -- in the end ------------------------------------------------------------------------------------------------------


def test_without_script_the_numbers_are_there(chromium, report):
    chromium.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        chromium.get(report.as_uri())
        assert [one.text for one in chromium.find_elements("css selector", ".leaderboard tbody a")] == ORDER
        assert "Without JavaScript" in chromium.find_element("css selector", "noscript").text
        assert not chromium.find_element("css selector", ".filter").is_displayed()
    finally:
        chromium.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})


def test_nothing_was_asked_for_and_nothing_was_complained_of(chromium, report):
    """Runs last: over all that the tests before it did."""
    chromium.get(report.as_uri())
    time.sleep(0.5)
    asked = set()
    for entry in chromium.get_log("performance"):
        message = json.loads(entry["message"])["message"]
        if message["method"] == "Network.requestWillBeSent":
            asked.add((message["params"]["documentURL"], message["params"]["request"]["url"]))
    mine = {url.partition("#")[0] for document, url in asked if document.startswith("file:")}
    assert report.as_uri() in mine  # the log is on
    assert [url for url in mine if url != report.as_uri() and not url.startswith("data:")] == []
    assert [url for _, url in asked if url.startswith(("http", "ws", "ftp", "//"))] == []
    assert chromium.get_log("browser") == []
