"""A page taken apart, to check that it is whole and needs nothing from elsewhere."""

from html.parser import HTMLParser

VOID = {"meta", "br", "img", "line", "polyline", "circle", "link", "input"}


class Page(HTMLParser):
    """Collects tags, checks that they are balanced, and notes everything that a browser would load."""

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.loads: list[str] = []
        self.anchors: list[str] = []
        self.styles = ""
        self.feed(text)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)
        for name, value in attributes:
            assert not name.startswith("on"), (tag, name)
            if name in ("src", "href", "srcset", "data", "xlink:href", "action", "poster"):
                self.loads.append(value)
            if name == "style":
                self.styles += value
            if name == "id":
                self.anchors.append(value)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-1:]}"
        self.open.pop()

    def handle_data(self, data):
        if self.open and self.open[-1] == "style":
            self.styles += data

    def is_self_contained(self):
        assert all(load.startswith("#") and load[1:] in self.anchors for load in self.loads), self.loads
        assert "url(" not in self.styles and "@import" not in self.styles
        assert not {"script", "img", "link", "iframe", "object"} & set(self.tags)
