"""The page at `/` in headless Chromium.

    page.py URL LOCKED_URL KEY [FOLDER]     URL serves `tiny`, a name with HTML in it and the adapter `tuned`; screenshots go to FOLDER
"""

import json
import pathlib
import sys
import tempfile
import urllib.request

from webdriver import ENTER, ESCAPE, Browser

HTML_NAME = "<img src=x onerror=document.title='gone'>"
MARKUP = "<b>bold</b> & <script>document.title='gone'</script>"
ANSWERS = "return [...document.querySelectorAll('article.assistant')].filter(a => a.ariaBusy === 'false').length"


class Page:
    def __init__(self, browser, url):
        self.browser, self.url, self.answers = browser, url, 0
        browser.open(url)

    def models(self):
        return self.browser.until("return [...document.querySelectorAll('#model option')].map(o => o.textContent)")

    def choose(self, model):
        script = "const s = document.querySelector('#model'); s.value = arguments[0]; return s.value === arguments[0]"
        assert self.browser.run(script, model), model

    def set(self, field, value):
        self.browser.run("document.getElementById(arguments[0]).value = arguments[1]", field, value)

    def clear(self):
        self.browser.click("#clear")
        self.answers = 0
        assert self.browser.text("#empty") == "Ask something."

    def ask(self, text):
        """Types, presses Enter, waits for the end; the newest answer's text and footer."""
        self.browser.type("#text", text + ENTER)
        self.answers += 1
        self.browser.until(f"{ANSWERS} === arguments[0]", self.answers)
        script = "const a = [...document.querySelectorAll('article.assistant')].pop(); return [...a.children].map(c => c.textContent)"
        parts = self.browser.run(script)
        return parts[0], parts[-1]


def check_headers(url):
    with urllib.request.urlopen(url) as response:
        policy = response.headers["Content-Security-Policy"]
        body = response.read().decode()
    assert "default-src 'none'" in policy and "unsafe" not in policy and "connect-src 'self'" in policy, policy
    assert "http" not in body.split("<style")[1], "the page names no other place"
    assert "innerHTML" not in body and "{{" not in body


def check_chat(page):
    browser = page.browser
    assert page.models() == ["tiny", HTML_NAME, "tuned"], page.models()
    assert browser.run("return document.activeElement.id") == "text", "one can type at once"
    page.set("temperature", "0")
    page.set("max_tokens", "24")
    text, footer = page.ask("hello " + MARKUP)
    assert text and footer.startswith("tiny · ") and "tok/s" in footer and "first after" in footer, (text, footer)
    assert browser.text("article.user .text") == "hello " + MARKUP
    again, _ = page.ask("hello " + MARKUP)
    assert again != text, "the conversation goes along"
    page.clear()
    same, _ = page.ask("hello " + MARKUP)
    assert same == text, "greedy, and from the beginning"
    page.choose("tuned")
    _, footer = page.ask("and now")
    assert footer.startswith("tuned · "), footer
    page.choose(HTML_NAME)
    _, footer = page.ask("and now")
    assert footer.startswith(HTML_NAME), footer
    assert browser.run("return document.querySelectorAll('#log img, #log b, #log script, #model img').length") == 0
    assert browser.run("return document.title") == "runtime"
    page.set("temperature", "9")
    text, _ = page.ask("wrong")
    assert "temperature" in browser.text("article .wrong"), "what the server says against it"
    # The refusal is the one line that the browser itself writes to the console.
    said = browser.console()
    assert len(said) == 1 and "400" in said[0], said


def check_figures(page):
    browser = page.browser
    page.set("temperature", "")
    page.set("max_tokens", "100")
    page.choose("tiny")
    page.clear()
    page.ask("count")
    for figure in ("speed", "first", "total", "queue", "cache", "hits"):
        browser.until("return !['–', ''].includes(document.getElementById(arguments[0]).textContent)", figure)
    browser.run("window.seen = ''; new MutationObserver(() => window.seen += document.getElementById('total').textContent)"
                ".observe(document.getElementById('total'), {childList: true})")
    page.ask("count on")
    browser.until("return /[1-9]/.test(window.seen)")
    browser.until("return document.getElementById('hits').textContent.endsWith('%')")
    browser.until("return document.getElementById('queue').textContent === '0, 0'")


def check_stop(page):
    """Stopped by the button, then by the key, as soon as the answer has begun."""
    browser = page.browser
    page.choose("tiny")
    page.set("max_tokens", "")
    when_it_begins = """
        const act = arguments[0];
        new MutationObserver((_, observer) => {
            const text = [...document.querySelectorAll('article[aria-busy=true] .text')].pop()?.textContent;
            if (!text) return;
            observer.disconnect();
            if (act === 'click') document.getElementById('stop').click();
            else document.activeElement.dispatchEvent(new KeyboardEvent('keydown', {key: 'Escape', bubbles: true}));
        }).observe(document.getElementById('log'), {subtree: true, childList: true, characterData: true});"""
    for act in ("click", "key"):
        for attempt in range(5):  # a random model may end by itself
            page.clear()
            browser.run(when_it_begins, act)
            text, footer = page.ask("never end")
            if footer.endswith("stopped"):
                break
        assert text and footer.endswith("stopped"), footer
    browser.press([ESCAPE])
    assert browser.run("return document.getElementById('stop').hidden && !document.getElementById('send').hidden")
    page.set("max_tokens", "8")
    assert page.ask("go on")[0], "the next answer comes"


def check_sizes(page, folder):
    browser = page.browser
    for name, width, height, dark in (("desktop", 1280, 800, False), ("desktop-dark", 1280, 800, True),
                                      ("phone", 360, 740, False), ("phone-dark", 360, 740, True)):
        browser.size(width, height, dark)
        wide = browser.run("return document.documentElement.scrollWidth")
        assert wide <= width, f"{name}: {wide} pixels wide"
        visible = browser.run("""return ['model', 'text', 'send', 'figures', 'clear'].filter(id => {
            const r = document.getElementById(id).getBoundingClientRect();
            return r.width < 20 || r.left < 0 || r.right > innerWidth || r.top < 0 || r.bottom > innerHeight; })""")
        assert visible == [], f"{name}: outside of the window: {visible}"
        ground = browser.run("return getComputedStyle(document.body).backgroundColor")
        assert (int(ground.split("(")[1].split(",")[0]) < 128) == dark, (name, ground)
        if folder:
            browser.screenshot(f"{folder}/{name}.png")
    # On a phone settings open by a button, which the keyboard reaches.
    browser.run("document.getElementById('more').focus()")
    browser.press([ENTER])
    assert browser.run("return !document.getElementById('settings').hidden && document.getElementById('more').ariaExpanded") == "true"
    if folder:
        browser.screenshot(f"{folder}/phone-settings.png")
    browser.size(1280, 800)


def check_tuning(page, folder):
    """A file is dropped, understood, trained on and published; base and tuned answer side by side."""
    browser = page.browser
    browser.click("#tab-tuning")
    assert browser.run("return document.getElementById('ask').hidden && !document.getElementById('tuning').hidden")
    row = {"messages": [{"role": "user", "content": "what is " + MARKUP}, {"role": "assistant", "content": "seven"}]}
    with tempfile.TemporaryDirectory() as place:
        bad, good = pathlib.Path(place, "bad.jsonl"), pathlib.Path(place, "good.jsonl")
        bad.write_text(json.dumps(row) + "\nnot json\n")
        good.write_text((json.dumps(row) + "\n") * 12)
        browser.type("#file", str(bad))
        browser.until("return document.getElementById('file-wrong').textContent.includes('line 2')")
        assert browser.run("return document.getElementById('start').disabled")
        browser.type("#file", str(good))
        browser.until("return document.getElementById('summary').textContent.startsWith('12 examples, 12 answers')")
        assert browser.text("#file-wrong") == "" and browser.text("#example") == "user: what is " + MARKUP + "\nassistant: seven"
        for field, value in (("suffix", "mine"), ("epochs", "4"), ("batch", "4"), ("rate", "50")):
            page.set(field, value)
        browser.run("document.getElementById('model').value = 'tiny'")
        browser.click("#start")
        browser.until("return document.getElementById('status').textContent")
    browser.until("return document.getElementById('status').textContent === 'succeeded'", seconds=120)
    browser.until("return document.getElementById('progress').textContent === '12 of 12 steps'")
    points = browser.run("return document.getElementById('train-line').getAttribute('points').split(' ').map(p => Number(p.split(',')[1]))")
    assert len(points) == 12 and points[-1] > points[0], "the loss falls: " + str(points)
    browser.until("return document.querySelectorAll('#samples dd').length >= 3")
    assert browser.run("return [...document.querySelectorAll('#version option')].length") == 3
    page.set("question", "what is " + MARKUP)
    browser.click("#both")
    browser.until("return !document.getElementById('both').disabled && document.getElementById('tuned-answer').textContent.length > 1")
    name = browser.text("#tuned-name")
    assert browser.text("#base-name") == "tiny" and name.startswith("ft:tiny:local:mine:"), name
    assert browser.text("#tuned-answer").startswith("seven") and not browser.text("#base-answer").startswith("seven")
    if folder:
        browser.screenshot(f"{folder}/tuning.png")
    browser.size(360, 740)
    wide = browser.run("return document.documentElement.scrollWidth")
    assert wide <= 360, wide
    if folder:
        browser.screenshot(f"{folder}/phone-tuning.png")
    browser.size(1280, 800)
    browser.click("#use")
    page.answers = browser.run(ANSWERS)
    page.clear()
    page.set("max_tokens", "8")
    page.set("temperature", "0")
    text, footer = page.ask("what is " + MARKUP)
    assert text.startswith("seven") and footer.startswith(name), (text, footer)
    assert browser.run("return document.querySelectorAll('#tuning img, #tuning b, #tuning script').length") == 0


def check_key(browser, url, key):
    page = Page(browser, url)
    browser.until("return document.getElementById('empty').textContent.includes('API key')")
    browser.type("#key", key + "\t")
    assert page.models()[0] == "tiny"
    page.set("max_tokens", "5")
    assert page.ask("hello")[0]
    stored = browser.run("return JSON.stringify([{...localStorage}, {...sessionStorage}, document.cookie])")
    assert stored == '[{},{},""]', stored
    assert all("401" in line for line in browser.console())


def main(url, locked_url, key, folder=None):
    check_headers(url)
    with Browser() as browser:
        browser.size(1280, 800)
        page = Page(browser, url)
        for check in (check_chat, check_figures, check_stop):
            check(page)
            print("ok", check.__name__)
        check_sizes(page, folder)
        print("ok check_sizes")
        check_tuning(page, folder)
        print("ok check_tuning")
        said = browser.console()
        assert said == [], said
        check_key(browser, locked_url, key)
        print("ok check_key")


if __name__ == "__main__":
    main(*sys.argv[1:])
