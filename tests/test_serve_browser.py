"""The page in a headless chromium: what a visitor clicks, and markup in questions and answers that must stay text."""

import json
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler

import httpx
import pytest
from browser import PROGRAM, Browser
from loopback import Loopback
from served import HEADERS, Backend, api, ending, model, piece, site, wait, writes

from benchmarks.serving import port

pytestmark = pytest.mark.skipif(not PROGRAM, reason="no chromium here: apt-get install chromium")
FIELD = "[data-testid=stChatInputTextArea]"
CALL = "window.hit=1"
URL = f"javascript:{CALL}"
MARKUP = [  # a line each
    line.replace("@URL", URL).replace("@CALL", CALL).replace("@NEWLINE", "\n").replace("@TAB", "\t")
    for line in r"""
<img src=x onerror=@CALL>x
<svg onload=@CALL>x
<body onload=@CALL>x
<iframe src=@URL>x
<iframe srcdoc='<script>@CALL</script>'>x
<video><source onerror=@CALL>x
<audio src=x onerror=@CALL>x
<details open ontoggle=@CALL>x
<object data=@URL>x
<embed src=@URL>x
<input autofocus onfocus=@CALL>x
<marquee onstart=@CALL>x
<style onload=@CALL>x
<link rel=import href=@URL>x
<math href=@URL>x
<form action=@URL><button>x
<base href=@URL//>x
<meta http-equiv=refresh content=0;url=@URL>x
<a href=@URL>x
<div style=animation-name:x onanimationstart=@CALL>x
<select autofocus onfocus=@CALL>x
<textarea autofocus onfocus=@CALL>x
<img/src=x/onerror=@CALL>x
<IMG SRC=x OnErRoR=@CALL>x
<img src=x onerror=&#119;indow.hit=1>x
<svg><animate onbegin=@CALL attributeName=x>x
<svg><script>@CALL</script>x
<script src=data:,@CALL>x
<script>@CALL</script>
<SCRIPT>@CALL</SCRIPT>
<scr<script>ipt>@CALL</script>
</textarea><script>@CALL</script>
"><script>@CALL</script>
'><img src=x onerror=@CALL>
--><script>@CALL</script>
]]><script>@CALL</script>
[a](@URL)
[a](JaVaScRiPt:@CALL)
[a](&#106;avascript:@CALL)
[a](java@TABscript:@CALL)
![a](@URL)
[a](data:text/html,<script>@CALL</script>)
<@URL>
[a]: @URL@NEWLINE[a]
![x](x"onerror="@CALL)
$\href{@URL}{a}$
$\htmlData{onclick=@CALL}{a}$
```html@NEWLINE<script>@CALL</script>@NEWLINE```
:material/@CALL: :red[<img src=x onerror=@CALL>]
![x](@LEAK/1.png)
<img src=@LEAK/2.png>
<link rel=stylesheet href=@LEAK/3.css>
$\includegraphics{@LEAK/4.png}$
""".strip().split("\n")
]


@contextmanager
def page(tmp_path, *models, script):
    """Yields (browser, backend) on the page before an API whose backend is `script`."""
    with (
        Backend(script) as backend,
        api(*models, backend_url=backend.url) as client,
        site(client.base_url) as url,
        Browser(tmp_path / "profile", port()) as browser,
    ):
        browser.size(1400, 900)
        browser.open(url)
        browser.until(f"!!document.querySelector('{FIELD}') && document.querySelectorAll('.st-key-save').length")
        yield browser, backend


class Counting(BaseHTTPRequestHandler):
    """Another host on this machine, which an answer would like to tell something."""

    asked = []

    def do_GET(self):
        self.asked.append(self.path)
        self.send_response(204)
        self.end_headers()


def count(selector):
    return f"document.querySelectorAll({json.dumps(selector)}).length"


@pytest.mark.parametrize("form", ["instruction", "think"])
def test_markup_in_questions_answers_and_reasoning_stays_text(tmp_path, monkeypatch, form):
    assert len(MARKUP) >= 50
    monkeypatch.setattr(Counting, "asked", [])
    plain, other = model(form=form, context=100000), Loopback(Counting)
    whole = "\n\n".join(MARKUP).replace("@LEAK", other.url)
    told = whole if form == "instruction" else f"<think>\n{whole}\n</think>"
    with other, page(tmp_path, plain, script=writes(piece(f"{told}\n\nthe end"), ending(9))) as (browser, _):
        browser.type(FIELD, whole)
        browser.until("document.body.innerText.includes('the end')")
        browser.until(count("[data-testid=stChatMessage]") + " >= 2")
        if form == "think":
            opened = "(e => e && (e.closest('details').open || (e.click(), false)))"  # the page's last run may close it
            browser.until(
                opened + "(document.querySelector('[data-testid=stExpander] summary'))"
                " && document.querySelector('[data-testid=stExpander]').innerText.includes('window.hit')"
            )
        inside = "[...document.querySelectorAll('[data-testid=stChatMessage] *')]"
        assert browser.js("window.hit") is None
        assert browser.js(f"{inside}.filter(e => [...e.attributes].some(a => /^on/i.test(a.name))).length") == 0
        assert browser.js(f"{inside}.filter(e => /^javascript/i.test(e.href || e.src || '')).length") == 0
        assert (
            browser.js(f"{inside}.filter(e => /^(script|iframe|object|embed|form|base|meta)$/i.test(e.tagName)).length")
            == 0
        )
        assert browser.js(f"{inside}.filter(e => (e.src || '').startsWith('{other.url}')).length") >= 1, "it was tried"
        links = f"{inside}.filter(e => e.tagName == 'A' && !e.href.startsWith('http'))"  # those lead out of the page
        browser.js(f"{links}.forEach(e => {{ e.target = '_self'; e.click() }})")
        assert browser.js("window.hit") is None
        assert Counting.asked == []
        assert httpx.get(f"{other.url}/seen", trust_env=False).status_code == 204 and Counting.asked == ["/seen"]


def test_stop_is_clicked_amid_an_answer_and_what_came_stays(tmp_path):
    async def slow(writer, body):
        import asyncio

        writer.write(HEADERS)
        for number in range(2000):
            writer.write(piece(f" word{number}"))
            await writer.drain()
            await asyncio.sleep(0.05)

    with page(tmp_path, model(form="instruction"), script=slow) as (browser, backend):
        browser.click(".st-key-example0 button")
        browser.until("document.body.innerText.includes('word3') && " + count(".st-key-stop button"))
        browser.click(".st-key-stop button")
        browser.until("document.body.innerText.includes('stopped')")
        wait(lambda: backend.left == 1)
        assert "word3" in browser.js("document.body.innerText")


def test_two_models_side_by_side_on_a_desk_and_on_a_phone(tmp_path):
    models = [model(name="tiny/a", form="think"), model(name="tiny/b", form="think")]
    said = [piece("<think>\npale, tired\n</think>\n\n"), piece("Iron deficiency."), ending(9)]
    with page(tmp_path, *models, script=writes(*said)) as (browser, backend):
        browser.type(".st-key-beside input", "tiny/b")
        browser.until("document.querySelector('.st-key-beside input').value == 'tiny/b'")
        browser.type(FIELD, "Crushing chest pain and my left arm is numb. What is it?")
        browser.until("(document.body.innerText.match(/Iron deficiency/g) || []).length == 2")
        browser.until("(document.body.innerText.match(/tokens\\/s/g) || []).length == 2")
        assert browser.js(count("[role=alert]")) >= 2 and len(backend.asked) == 2
        for width in (1400, 390):
            browser.size(width, 900)
            browser.until(f"document.documentElement.clientWidth == {width}")
            if width == 390:  # the controls give way
                browser.until("document.querySelector('[data-testid=stSidebar]').getBoundingClientRect().right <= 0")
            assert browser.js("document.documentElement.scrollWidth") <= width
            browser.shot(tmp_path / f"{width}.png")
