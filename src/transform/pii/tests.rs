use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::*;

fn all() -> Scanner {
    Scanner::new(&Settings { action: Action::Redact, kinds: Kind::ALL.to_vec() })
}

fn redacted(text: &str) -> String {
    all().scan(text).text.into_owned()
}

#[test]
fn each_kind_is_redacted() {
    for (text, clean) in [
        ("mail jane.o'neill+news@mail.example.co.uk.", "mail [EMAIL]."),
        ("<mailto:günter@bücher.de>", "<mailto:[EMAIL]>"),
        ("card 4111 1111 1111 1111, amex 3782-822463-10005", "card [CREDIT_CARD], amex [CREDIT_CARD]"),
        ("IBAN: DE89 3704 0044 0532 0130 00 please", "IBAN: [IBAN] please"),
        ("gb82west12345698765432", "[IBAN]"),
        ("SSN 123-45-6789; ssn is 123456789", "SSN [US_SSN]; ssn is [US_SSN]"),
        ("from 203.0.113.9:443 to 10.0.0.0/8", "from [IP_ADDRESS]:443 to [IP_ADDRESS]/8"),
        ("via 2001:db8::8a2e:370:7334.", "via [IP_ADDRESS]."),
        ("see https://example.com/a?b=c. And (www.example.org)", "see [URL]. And ([URL])"),
    ] {
        assert_eq!(redacted(text), clean);
    }
}

#[test]
fn phone_numbers_are_known_by_their_form_or_by_the_words_around_them() {
    for number in [
        "+44 20 7946 0958",
        "+49 (0)30 901820",
        "0033 1 23 45 67 89",
        "(555) 123-4567",
        "555-123-4567 x89",
        "01 23 45 67 89",
        "+15551234567",
    ] {
        assert_eq!(redacted(&format!("it is {number}, yes")), "it is [PHONE], yes", "{number}");
    }
    assert_eq!(redacted("Call me: 785 8949"), "Call me: [PHONE]");
    assert_eq!(redacted("6177253912 (mobile)"), "[PHONE] (mobile)");
    assert_eq!(redacted("there were 785 8949 of them"), "there were 785 8949 of them");
}

#[test]
fn numbers_that_fail_their_proof_stay() {
    for text in [
        "4111 1111 1111 1112",
        "order 9999888877776666",
        "DE88 3704 0044 0532 0130 00",
        "DE89 3704 0044 0532 0130",
        "000-12-3456 666-12-3456 900-12-3456 123-00-4567 123-45-0000",
        "300.1.1.1 and 1.2.3.4.5",
    ] {
        assert_eq!(redacted(text), text);
    }
}

#[test]
fn technical_text_stays() {
    for text in [
        "Python 3.11.2, OpenSSL 1.1.1.4, release 10.0.19045.1, section 9.16.2.1. Strict",
        "2023-11-14T22:13:20.123456+01:00 1700000000 1700000000123 20231114",
        "14/11/2023 22:13, 2023-11-14 22:13:20, 01-02-2003 10:11",
        "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
        "uuid 123e4567-e89b-12d3-a456-426614174000 blk_-1608999687919862906",
        "port 5432, localhost:8080, 127.0.0.1:9000, 0.0.0.0, ::1, 255.255.255.0",
        "SELECT x::date, '1'::int; std::vec::Vec a::b 08:00:2b:01:02:03",
        "@app.route @property user@localhost a@b",
        "00 01 02 03 04 05 06 07 08 09 0a 0b",
        "| 100 | 200 3000 | 0.123-0.456 | 1,234,567 | 12:34:56.789 |",
        "RFC 7231, ISO/IEC 7812-1, Rochester NH 03866-5005, pid 10037, 0x7ffd5e3c",
        "| must | 3.2.2.4 |x| and 1.3.6.1.4.1.311",
    ] {
        assert_eq!(redacted(text), text);
    }
}

#[test]
fn only_the_kinds_named_are_looked_for() {
    let text = "a@example.com https://example.com/ 203.0.113.9";
    let counts = |settings: Settings| Scanner::new(&settings).scan(text).counts();
    assert_eq!(counts(Settings::default()), BTreeMap::from([(Kind::Email, 1), (Kind::IpAddress, 1)]));
    assert_eq!(
        counts(Settings { kinds: vec![Kind::Url, Kind::Url], ..Settings::default() }),
        BTreeMap::from([(Kind::Url, 1)])
    );
    assert_eq!(counts(Settings { action: Action::Off, ..Settings::default() }), BTreeMap::new());
}

#[test]
fn detect_leaves_the_text_and_the_first_kind_listed_wins() {
    let scanner = Scanner::new(&Settings { action: Action::Detect, kinds: Kind::ALL.to_vec() });
    let text = "http://jane@example.com/203.0.113.9 or joe@example.com";
    let scan = scanner.scan(text);
    assert_eq!(scan.text, text);
    assert_eq!(
        scan.findings,
        [Finding { kind: Kind::Url, range: 0..35 }, Finding { kind: Kind::Email, range: 39..54 }]
    );
}

#[test]
fn debug_output_shows_no_text() {
    let scanner = Scanner::new(&Settings { action: Action::Detect, ..Settings::default() });
    let shown = format!("{:?}", scanner.scan("secret@example.com"));
    assert!(shown.contains("Email") && !shown.contains("secret"), "{shown}");
}

#[test]
fn settings_read_as_written() {
    let settings: Settings =
        toml::from_str("action = \"reject\"\nkinds = [\"credit_card\", \"us_ssn\"]").unwrap();
    assert_eq!(settings, Settings { action: Action::Reject, kinds: vec![Kind::CreditCard, Kind::UsSsn] });
    for kind in Kind::ALL {
        assert_eq!(serde_json::to_value(kind).unwrap(), kind.name());
    }
    assert!(toml::from_str::<Settings>("kinds = [\"name\"]").is_err());
    assert_eq!(Settings { kinds: vec![], ..settings }.validate().unwrap_err().key, "kinds");
}

#[test]
fn long_text_of_one_kind_of_character_is_scanned_in_linear_time() {
    let texts = ["7", "a", "a@", "1.", "f:", "1 ", "DE89 ", "0", "4111 ", "(1", "x.y@", "+1 "];
    for text in texts.map(|unit| unit.repeat(1_000_000 / unit.len())) {
        let begin = Instant::now();
        all().scan(&text);
        // Quadratic time would be minutes.
        assert!(begin.elapsed() < Duration::from_secs(10), "{}", &text[..8]);
    }
}

proptest! {
    #[test]
    fn what_is_found_lies_in_the_text_and_a_redacted_text_holds_nothing_more(
        text in "(\\PC|[0-9]{1,5}|[ .:/+()@-]|x@y\\.zz|[a-f]{1,4}|call |\\+44 20 7946 0958|203\\.0\\.113\\.9|é){0,30}"
    ) {
        let scanner = all();
        let mut done = 0;
        for Finding { range, .. } in scanner.findings(&text) {
            prop_assert!(done <= range.start && range.start < range.end);
            prop_assert!(text.get(range.clone()).is_some());
            done = range.end;
        }
        let once = scanner.scan(&text).text.into_owned();
        prop_assert_eq!(scanner.scan(&once).text.matches("x@y.zz").count(), 0);
    }
}

/// Numbers of every kind, and what is like them.
pub(super) fn numbers() -> impl Strategy<Value = String> {
    let told = prop::sample::select(vec![
        "+44 20 7946 0958",
        "0044 20 7946",
        "(555) 123-4567",
        "(020) 7946 0958",
        "01 23 x4",
        " ext. 5",
        "call me: ",
        "phone ",
        "785 8949",
        "4111 1111 1111 1111",
        "3782-822463-10005",
        "DE89 3704 0044 0532 0130 00",
        "gb82west12345698765432",
        "123-45-6789",
        "ssn 123 45 6789",
        "from 203.0.113.9",
        "203.0.113.9:443",
        "2001:db8::8a2e:370:7334",
        "fe80::a",
        "::ffff:10.1.2.3",
        "jane.o'neill@mail.example.co.uk",
        "1.02-1.05, p=0.001",
        "2023-11-14",
    ]);
    let piece = prop_oneof![
        3 => told.prop_map(str::to_owned),
        2 => "[0-9]{1,6}",
        3 => "[ .,:/+()x@_%é-]",
        1 => "[a-fxet ]{1,3}",
    ];
    prop::collection::vec(piece, 0..12).prop_map(|pieces| pieces.concat())
}
