"""Personal data out of text: e-mail addresses and public IPv4 addresses, replaced as datatrove's PIIFormatter does, and telephone
numbers if asked for, found by the package phonenumbers (Google's libphonenumber).

Quantifiers are bounded (an address has at most 64 characters before the @): the unbounded pattern takes quadratic time on one
long word.
"""

from __future__ import annotations

import ipaddress
import re
import sys
from collections.abc import Callable

from freedive.runs import UserError

EMAILS = ("email@example.com", "firstname.lastname@example.org")
ADDRESSES = (
    "22.214.171.124",
    "126.96.36.199",
    "188.8.131.52",
    "184.108.40.206",
    "220.127.116.11",
    "18.104.22.168",
)  # datatrove's
PHONES = tuple(f"+1 202-555-01{n:02d}" for n in range(0, 100, 17))  # 555-0100 to 555-0199 are kept for fiction
_ATOM = r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]{1,64}"
_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_EMAIL = re.compile(rf"(?<![A-Za-z0-9]){_ATOM}(?:\.{_ATOM}){{0,8}}@(?:{_LABEL}\.){{1,8}}{_LABEL}")
_OCTET = r"(?:25[0-5]|2[0-4][0-9]|[01]?[0-9][0-9]?)"
_DOTTED = re.compile(r"[0-9]\.[0-9]{1,3}\.[0-9]{1,3}\.[0-9]")  # what every IPv4 address holds, and hardly any page
_GAP = re.compile(r"[ \n]")
_IPV4 = re.compile(rf"(?<![\d.]){_OCTET}(?:\.{_OCTET}){{3}}(?![\d])(?!\.\d)")
_NO_PHONE = re.compile(r"(?:(?:https?:|www\.|[./])\S*/\S*|\bISBN\W{0,3}(?:1[03]\W{0,3})?)\Z", re.IGNORECASE)  # what stands before it
_SEVEN_DIGITS = re.compile(r"(?:\d\W{0,4}){6}\d")  # shorter numbers are left


def scrub(text: str) -> str:
    """The text with addresses replaced, in turn, so that the same document always gives the same result."""
    if "@" in text:
        count = 0

        def email(_: re.Match[str]) -> str:
            nonlocal count
            count += 1
            return EMAILS[(count - 1) % len(EMAILS)]

        text = _near_at(text, email)
    if not _DOTTED.search(text):
        return text
    number = 0

    def address(match: re.Match[str]) -> str:
        nonlocal number
        try:
            if not ipaddress.ip_address(match.group()).is_global:
                return match.group()
        except ValueError:  # leading zeros
            return match.group()
        number += 1
        return ADDRESSES[(number - 1) % len(ADDRESSES)]

    return _IPV4.sub(address, text)


def _near_at(text: str, replace: Callable[[re.Match[str]], str]) -> str:
    """Replaces addresses where an @ is, from the gap before it to the gap after it: no address goes over one."""
    parts: list[str] = []
    done = 0
    at = text.find("@")
    while at >= 0:
        start = max(text.rfind(" ", done, at), text.rfind("\n", done, at), done - 1) + 1
        gap = _GAP.search(text, at)
        end = gap.start() if gap else len(text)
        parts += text[done:start], _EMAIL.sub(replace, text[start:end])
        done = end
        at = text.find("@", done)
    return "".join(parts) + text[done:]


def find_countries(codes: tuple[str, ...]) -> tuple[str, ...]:
    """ISO 3166 codes as scrub_phones takes them, in order, once each; "us,gb" counts too. UserError if one is no country's or the package is missing."""
    countries = sorted({code.strip().upper() for word in codes for code in word.split(",") if code.strip()})
    if not countries:
        return ()
    try:
        import phonenumbers
    except ImportError:
        raise UserError("telephone numbers need the package phonenumbers", hint="pip install 'freedive[data]'") from None
    for country in countries:
        if country not in phonenumbers.SUPPORTED_REGIONS:
            raise UserError(f"--phones {country}: no such country", hint="two letters, as US, GB or DE")
    return tuple(countries)


def scrub_phones(text: str, countries: tuple[str, ...]) -> str:
    """The text with telephone numbers replaced, in turn, by numbers kept for fiction.

    Numbers with + and the country's code count from anywhere, numbers without only as one writes them inside `countries` (ISO 3166
    codes). They must be valid: an existing area, the right length. Bare digits, without a separator, are left: most are not
    telephone numbers; so are those of six digits and less, IPv4 addresses, ISBNs, and what stands in a web address or a path.
    """
    if not _SEVEN_DIGITS.search(text):
        return text
    from phonenumbers import Leniency, PhoneNumberMatcher

    found: list[tuple[int, int]] = []
    for country in countries:
        for match in PhoneNumberMatcher(text, country, Leniency.VALID, max_tries=sys.maxsize):
            number = match.raw_string
            if sum(map(str.isdigit, number)) < 7 or number.isdigit() or _in_ipv4(text, match.start, match.end):
                continue
            if not _NO_PHONE.search(text[max(match.start - 200, 0) : match.start]):
                found.append((match.start, match.end))
    parts: list[str] = []
    done = count = 0
    for start, end in sorted(found, key=lambda span: (span[0], -span[1])):
        if start < done:  # found for another country too
            continue
        parts += text[done:start], PHONES[count % len(PHONES)]
        count += 1
        done = end
    return "".join(parts) + text[done:]


def _in_ipv4(text: str, start: int, end: int) -> bool:
    """Whether an IPv4 address, of any kind, shares a character with text[start:end]."""
    return any(found.start() < end and found.end() > start for found in _IPV4.finditer(text, max(start - 16, 0), end + 16))
