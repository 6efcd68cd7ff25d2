"""Personal data: what is masked, and what only looks like it."""

import pytest

from engine.curation.personal_data import MASKS, mask_personal_data

# The numbers are the public examples of their standards and services, or invented.
FOUND = {
    "email": ["jane.doe+news@mail.acme.co.uk", "j@acme.io"],
    "card": ["4111 1111 1111 1111", "4111111111111111", "5500-0000-0000-0004", "3782 822463 10005"],
    "iban": ["DE89 3704 0044 0532 0130 00", "GB82WEST12345698765432", "NO9386011117947"],
    "phone": [
        "+49 30 901820",
        "+442079460958",
        "+1 (212) 456-7890",
        "212-456-7890",
        "(650) 253-0000",
        "1-800-275-2273",
    ],
    "ip_address": ["8.8.8.8", "93.184.216.34", "2606:4700:4700::1111"],
    "key": [
        "sk-" + "abcdefghijklmnopqrstuvwx",
        "hf_" + "a1B2" * 8 + "xx",
        "ghp_" + "a1B2" * 9,
        "AKIA" + "IOSFODNN7EXAMPLE",
        "-----BEGIN RSA PRIVATE KEY-----\nMIIE\n-----END RSA PRIVATE KEY-----",
    ],
}
STAYS = [
    "version 1.2.3.4 and v10.20.30.40, or package==1.2.3.4",
    "Chrome/91.0.4472.124 and numpy-2.4.6.1",
    "192.168.1.1, 10.0.0.1, 127.0.0.1, 0.0.0.0, ::1, 999.8.8.8, fe80::1",
    "at 17:03:44 in the ratio 2:1:3",
    "std::vector and a::b::c, MAC 00:1B:44:11:3A:B7",
    "4111 1111 1111 1112",  # Luhn
    "0000 0000 0000 0000",
    "DE89 3704 0044 0532 0130 01",  # mod 97
    "DE89 3704 0044 0532 0130",  # the length of another country
    "jane@example.com, root@localhost, @property, a @ b, git@github.com:owner/name",
    "ISBN 978-3-16-148410-0, 2026-11-29, 1999-2004",
    "3.14159265358979, 6.02214076e23, 1,234,567,890",
    "x = 472547338\n+960397912423686",
    "5+4152331234 = ?",
    "Call 555-0123 or (212) 555-0123",  # numbers of films
    "sk-learn, hf_hub, task-force, AKIA",
    "uuid 123e4567-e89b-12d3-a456-426614174000",
    "sha 9fceb02d0ae598e95dc970b74767f19372d61af8",
    "id 1234567890123456",
]


def test_every_kind_has_a_case():
    assert FOUND.keys() == MASKS.keys()


@pytest.mark.parametrize(("kind", "value"), [(kind, value) for kind, values in FOUND.items() for value in values])
def test_personal_data_is_masked_in_any_sentence(kind, value):
    for before, after in (("", ""), ("It is ", "."), ("(", ")"), ("a:\n", ", and"), ('"', '"')):
        assert mask_personal_data(f"{before}{value}{after}") == (f"{before}{MASKS[kind]}{after}", {kind: 1})


@pytest.mark.parametrize("text", STAYS)
def test_what_only_looks_like_it_stays(text):
    assert mask_personal_data(text) == (text, {})


def test_pieces_of_several_kinds_are_counted_and_masking_again_changes_nothing():
    text = "Write to a@acme.io or b@acme.io, or call +49 30 901820."
    masked, counts = mask_personal_data(text)
    assert masked == "Write to <EMAIL> or <EMAIL>, or call <PHONE_NUMBER>." and counts == {"email": 2, "phone": 1}
    assert mask_personal_data(masked) == (masked, {})
