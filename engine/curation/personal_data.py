"""Masks personal data in texts: e-mail and public IP addresses, phone, card and account numbers, and secret keys.

Only what a checksum, a prefix or a fixed form tells is masked, so that version numbers, prices, dates and code stay:
cards by Luhn's, IBANs by ISO 7064 mod 97 and their country's length, phone numbers by the plus of E.164 or the form of
North America, and keys by the prefixes of the services that issue them. Names and postal addresses need a model, and
stay. Needs no torch.
"""

import ipaddress
import re
from collections import Counter
from collections.abc import Callable

MASKS = {
    "key": "<KEY>",
    "email": "<EMAIL>",
    "iban": "<IBAN>",
    "card": "<CARD_NUMBER>",
    "phone": "<PHONE_NUMBER>",
    "ip_address": "<IP_ADDRESS>",
}
EXAMPLE_DOMAINS = re.compile(r"[@.](?:example\.(?:com|org|net)|localhost|test|invalid|example)\Z", re.IGNORECASE)
# Countries with the length of their account numbers.
IBAN_LENGTHS = {
    country[:2]: int(country[2:])
    for country in (
        "AT20 BE16 BG22 CH21 CY28 CZ24 DE22 DK18 EE20 ES24 FI18 FR27 GB22 GR27 HR21 HU28 IE22 IS26 IT27 LI21 LT20 LU20"
        " LV21 MC27 MT31 NL18 NO15 PL28 PT25 RO24 SA24 SE24 SI19 SK24 TR26 UA29"
    ).split()
}
E_164 = range(8, 16)  # digits
_KEY = re.compile(
    r"(?<![\w-])(?:sk-(?:proj-|ant-)?[\w-]{20,}|hf_[A-Za-z0-9]{30,}|gh[pousr]_[A-Za-z0-9]{36,}|github_pat_\w{40,}"
    r"|glpat-[\w-]{20}|xox[abprs]-[\w-]{10,}|A[KS]IA[0-9A-Z]{16}|AIza[\w-]{35}"
    r"|[sr]k_(?:live|test)_[A-Za-z0-9]{20,})(?![\w-])"
    r"|-----BEGIN (?:[A-Z]+ )?PRIVATE KEY-----.*?-----END (?:[A-Z]+ )?PRIVATE KEY-----",
    re.DOTALL,
)
_EMAIL = re.compile(
    r"(?<![\w.+/:-])[A-Za-z0-9](?:[\w.+-]{0,62}[\w+-])?@(?:[A-Za-z0-9-]{1,63}\.){1,4}[A-Za-z]{2,24}(?![\w-]|:\w)"
)
_IBAN = re.compile(r"(?<![\w-])[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?(?![\w-])")
# Neither part of a longer number, of a formula or of a name.
_BEFORE, _AFTER = r"(?<![\w.,+*/=^-])", r"(?![\w%/=-]|[.,]\d)"
_CARD = re.compile(rf"{_BEFORE}(?:[3-6]\d{{3}}(?:[ -]?\d{{4}}){{3}}|3[47]\d{{2}}[ -]?\d{{6}}[ -]?\d{{5}}){_AFTER}")
_PHONE = re.compile(
    rf"{_BEFORE}(?<![\d)\]]\s)\+[1-9]\d{{0,2}}[ .-]?(?:\(\d{{1,4}}\)[ .-]?)?\d{{1,5}}(?:[ .-]?\d{{2,5}}){{1,4}}{_AFTER}"
    rf"|{_BEFORE}(?:1[ .-])?(?:\([2-9]\d{{2}}\) ?|[2-9]\d{{2}}[.-])[2-9]\d{{2}}[.-]\d{{4}}{_AFTER}"
)
_IP = re.compile(
    r"(?<![\w.:/-])(?:\d{1,3}\.){3}\d{1,3}(?![\w-]|\.\d)"
    r"|(?<![\w.:])(?:[0-9a-fA-F]{1,4}:){2,7}(?::|[0-9a-fA-F]{1,4})(?::?[0-9a-fA-F]{1,4}){0,5}(?![\w:]|\.\w)"
)
_VERSION = re.compile(r"(?:version|release|v\.?|build|oid|section|==|>=|<=|~=|\^)\s*\Z", re.IGNORECASE)


def mask_personal_data(text: str) -> tuple[str, Counter[str]]:
    """The text with a mask in the place of each piece of personal data, and how many there are of each kind."""
    counts: Counter[str] = Counter()
    for kind, needed, pattern, is_valid in _KINDS:
        if needed(text):
            text = pattern.sub(_replace(kind, is_valid, counts), text)
    return text, counts


Test = Callable[[re.Match[str]], bool]


def _replace(kind: str, is_valid: Test, counts: Counter[str]) -> Callable[[re.Match[str]], str]:
    def replace(found: re.Match[str]) -> str:
        if not is_valid(found):
            return found[0]
        counts[kind] += 1
        return MASKS[kind]

    return replace


def _digits(found: re.Match[str]) -> str:
    return re.sub(r"\D", "", found[0])


def _is_card(found: re.Match[str]) -> bool:
    """Luhn's checksum: every second digit from the right doubled, the digits of all added, and divisible by 10."""
    digits = [int(digit) for digit in reversed(_digits(found))]
    doubled = [2 * digit - 9 * (digit > 4) for digit in digits[1::2]]
    return (sum(digits[::2]) + sum(doubled)) % 10 == 0 and len(set(digits)) > 1


def _is_iban(found: re.Match[str]) -> bool:
    """Letters as numbers from 10 on, the first four characters at the end: the remainder by 97 is 1."""
    characters = found[0].replace(" ", "")
    if len(characters) != IBAN_LENGTHS.get(characters[:2]):
        return False
    return int("".join(str(int(character, 36)) for character in characters[4:] + characters[:4])) % 97 == 1


def _is_phone(found: re.Match[str]) -> bool:
    digits = _digits(found)
    is_invented = "555" in digits[-10:-4] and digits[-7:-4] == "555" and digits[-4:-2] == "01"
    return (len(digits) in E_164 or len(digits) == 10) and not is_invented


def _is_public_address(found: re.Match[str]) -> bool:
    try:
        address = ipaddress.ip_address(found[0])
    except ValueError:
        return False
    if address.version == 4 and _VERSION.search(found.string, max(0, found.start() - 12), found.start()):
        return False
    return address.is_global and not address.is_multicast and not found[0].endswith(".0")


def _is_address(found: re.Match[str]) -> bool:
    return not EXAMPLE_DOMAINS.search(found[0])


_HAS_KEY = re.compile("sk-|hf_|gh[pousr]_|github_pat|glpat-|xox|A[KS]IA|AIza|k_(?:live|test)_|PRIVATE KEY")
_HAS_ACCOUNT = re.compile(r"\b[A-Z]{2}\d{2}")
_HAS_DIGITS = re.compile(r"\d(?:[ ().-]{0,2}\d){6}")
_HAS_ADDRESS = re.compile(r"\d\.\d{1,3}\.\d|[0-9a-fA-F]:[0-9a-fA-F:]")
# kind, a fast test whether the text can have it, its form, and what its digits have to fulfil
_KINDS: tuple[tuple[str, Callable[[str], object], re.Pattern[str], Test], ...] = (
    ("key", _HAS_KEY.search, _KEY, bool),
    ("email", lambda text: "@" in text, _EMAIL, _is_address),
    ("iban", _HAS_ACCOUNT.search, _IBAN, _is_iban),
    ("card", _HAS_DIGITS.search, _CARD, _is_card),
    ("phone", _HAS_DIGITS.search, _PHONE, _is_phone),
    ("ip_address", _HAS_ADDRESS.search, _IP, _is_public_address),
)
