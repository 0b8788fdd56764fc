"""Three web sites' worth of HTML around a body: navigation, cookie banner, scripts, side columns, footers. All must go again."""

from __future__ import annotations

from html import escape

from .draw import Draw

SITES = {  # kind of page -> host and site name
    "town": ("www.fernwick-post.example", "The Fernwick Post"),
    "sums": ("sums.school.example", "Sums for Everyone"),
    "letters": ("letters.school.example", "Letters and Words"),
    "docs": ("docs.python-mirror.example", "Python documentation"),
    "junk": ("www.great-deals.example", "Great Deals"),
}
MENUS = (
    ("Home", "News", "People", "Weather", "Market", "Sports"),
    ("Start", "Lessons", "Library", "About us", "Contact"),
    ("Front page", "Archive", "Help"),
)
TEASERS = (
    "Ten ways to fold a napkin",
    "Storm closes harbour",
    "Choir seeks voices",
    "Lost: one blue umbrella",
    "Market moves to the park",
    "New clock for the tower",
    "Bridge painted again",
    "Letters to the editor",
)


def page(draw: Draw, kind: str, title: str, body: str, language: str = "en") -> bytes:
    """A whole HTML page as UTF-8; `body` is HTML, `title` text. The layout is drawn."""
    _, site = SITES[kind]
    menu = "".join(f'<li><a href="/{item.lower().replace(" ", "-")}">{item}</a></li>' for item in draw.pick(MENUS))
    teasers = "".join(f'<li><a href="/story/{draw.below(9999)}">{item}</a></li>' for item in draw.sample(TEASERS, 4))
    build = f"{draw.below(2**32):08x}"
    head = (
        f'<!DOCTYPE html>\n<html lang="{language}">\n<head>\n<meta charset="utf-8">\n<title>{escape(title)} | {site}</title>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<link rel="stylesheet" href="/static/site.{build}.css">\n'
        "<style>body{font:16px/1.5 serif;margin:0}.menu li{display:inline}"
        ".cookie-banner{position:fixed;bottom:0;width:100%}</style>\n"
        f"<script>window.dataLayer=window.dataLayer||[];"
        f'function gtag(){{dataLayer.push(arguments)}}gtag("build","{build}");</script>\n</head>\n<body>\n'
    )
    cookies = (
        '<div id="cookie-banner" class="cookie-banner" role="dialog">'
        "<p>We use cookies to improve this site. By going on you accept our cookie policy.</p>"
        "<button>Accept all</button><button>Settings</button></div>\n"
    )
    top = f'<header class="site-header"><a class="logo" href="/">{site}</a><nav class="menu"><ul>{menu}</ul></nav></header>\n'
    aside = f'<aside class="sidebar"><h3>Most read</h3><ul>{teasers}</ul>'
    aside += '<form><input name="q"><button>Search</button></form></aside>\n'
    footer = (
        f'<footer class="site-footer"><ul><li><a href="/imprint">Imprint</a></li>'
        '<li><a href="/privacy">Privacy policy</a></li></ul>'
        f'<p>© 2025 {site}. All rights reserved.</p></footer>\n<script src="/static/app.{build}.js"></script>\n</body>\n</html>\n'
    )
    heading = f"<h1>{escape(title)}</h1>\n"
    layout = draw.below(3)
    if layout == 0:
        middle = f"{cookies}{top}<main><article>{heading}{body}\n</article></main>\n{aside}"
    elif layout == 1:
        middle = (
            f'{top}<div class="columns">{aside}<div id="content" class="article-body">{heading}{body}\n</div></div>\n{cookies}'
        )
    else:
        middle = f'{top}{cookies}<section class="post">{heading}<div class="entry-content">{body}</div></section>\n{aside}'
    return (head + middle + footer).encode()


def paragraphs(lines: list[str]) -> str:
    return "\n".join(f"<p>{escape(line, quote=False)}</p>" for line in lines)


def table(header: list[str], rows: list[list[str]]) -> str:
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    body = "\n".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table>\n<tr>{head}</tr>\n{body}\n</table>"
