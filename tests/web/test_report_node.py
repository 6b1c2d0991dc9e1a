"""The node 'Merge report': its pictures are as wide as the node, which is wide enough to read them."""

import pytest
from PIL import Image
from playwright.sync_api import expect

WIDTH = 440
LEAST = 380  # of a picture 960 pixels wide, so that letters of 20 pixels are read


def test_its_pictures_can_be_read(server, in_renderer, picture):
    (server.base / "temp").mkdir(exist_ok=True)
    drawn = server.base / "temp" / "report of a test.png"
    Image.new("RGB", (960, 1200), "#202020").save(drawn)
    frontend = in_renderer
    page = frontend.page
    node = 1
    frontend.load({str(node): {"class_type": "IterISReport", "inputs": {}}}, "report")
    frontend.show(node, top=80)
    size = "id => [...app.graph.getNodeById(id).size]"
    assert page.evaluate(size, node)[0] >= WIDTH
    file = {"filename": drawn.name, "subfolder": "", "type": "temp"}
    output = {"text": ["cat: kept 80 % (73 to 87), good or weak"], "iteris_pictures": [file]}
    frontend.executed(node, output)
    text = page.locator(".iteris-text:not(.iteris-hidden)")
    shown = text.locator("img")
    page.wait_for_function("document.querySelector('.iteris-text img')?.naturalWidth")
    frontend.settle()
    assert text.inner_text().startswith("cat: kept 80 %")
    box = shown.bounding_box()
    assert box["width"] >= LEAST
    assert box["height"] == pytest.approx(box["width"] * 1200 / 960, rel=0.02)
    width, height = page.evaluate(size, node)
    assert (box["width"], box["height"]) < (width, height), "the node has grown for its picture"
    page.evaluate("id => app.graph.getNodeById(id).showIterisText({ text: ['nothing'] })", node)
    page.evaluate("outputs => { app.nodeOutputs = outputs; }", {str(node): output})
    page.wait_for_function("document.querySelector('.iteris-text img')?.naturalWidth")
    assert text.inner_text().startswith("cat: kept 80 %")
    assert frontend.errors == []
    picture(frontend, "report_node")


def test_the_browser_keeps_a_report_that_the_server_has_lost(in_renderer, server):
    """As after a restart, where Merge still shows its own."""
    frontend = in_renderer
    page = frontend.page
    (server.base / "temp").mkdir(exist_ok=True)
    drawn = server.base / "temp" / "report that is lost.png"
    Image.new("RGB", (96, 120), "#202020").save(drawn)
    # newer frontends keep a value by its node's id, for the next test, too
    frontend.load({"2": {"class_type": "IterISReport", "inputs": {"show": "layers"}}}, "kept")
    file = {"filename": drawn.name, "subfolder": "", "type": "temp"}
    frontend.executed(2, {"text": ["cat: kept 80 %"], "iteris_pictures": [file]})
    frontend.pictures_kept(2)
    drawn.unlink()
    saved = frontend.workflow()
    frontend.load({"1": {"class_type": "IterISSave", "inputs": {}}}, "elsewhere")
    frontend.load(saved, "opened again")
    frontend.show(2)
    page.wait_for_function(
        "document.querySelector('.iteris-text img')?.src.startsWith('blob:') && "
        "document.querySelector('.iteris-text img').naturalWidth"
    )
    expect(page.locator(".iteris-text >> visible=true")).to_have_text("cat: kept 80 %")
    assert page.locator(".iteris-forgotten").count() == 0
    assert frontend.errors == []


def test_what_the_server_has_forgotten_is_told_until_the_next_run(in_renderer, picture):
    """As after a restart of the server, which keeps no run and no picture."""
    frontend = in_renderer
    page = frontend.page
    # of no other test, of which the page keeps the picture
    frontend.load(
        {"3": {"class_type": "IterISReport", "inputs": {"show": "everything"}}}, "forgotten"
    )
    file = {"filename": "gone.png", "subfolder": "", "type": "temp"}
    output = {"text": ["cat: kept 80 %"], "iteris_pictures": [file]}
    frontend.executed(3, output)
    text = page.locator(".iteris-text:not(.iteris-hidden)")
    text.get_by_text("The server no longer has the result").wait_for()
    assert text.inner_text().startswith("cat: kept 80 %")
    ran = "app.graph.getNodeById(3).properties.iteris_ran?.files"
    page.wait_for_function(ran)
    saved = frontend.workflow()
    frontend.load({"1": {"class_type": "IterISSave", "inputs": {}}}, "elsewhere")
    for name, files in (("opened", []), ("a stranger's", [{"name": 7}])):
        saved["nodes"][0]["properties"]["iteris_ran"]["files"] = files
        frontend.load(saved, name)
        page.wait_for_selector(".iteris-forgotten")
        frontend.show(3)
        assert text.inner_text().startswith("The server no longer has the result")
    picture(frontend, "report_forgotten")
    frontend.begin("b")
    assert text.count() == 0
    saved["nodes"][0]["properties"]["iteris_ran"]["name"] = "of other inputs"
    with page.expect_response("**/history?*"):
        frontend.load(saved, "changed")
    frontend.settle()
    assert text.count() == 0
    assert frontend.errors == []
