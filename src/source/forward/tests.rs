//! What a client's bytes become, from the first byte to the frame.

use std::io::Write;

use bytes::BytesMut;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::{
    fuzz::{MOST, Seen, see_in, target},
    *,
};
use crate::record::{Defaults, RecordRef};

fn see(stream: &[u8]) -> Seen {
    see_in(stream, &[])
}

fn pack(value: &impl serde::Serialize) -> Vec<u8> {
    rmp_serde::to_vec_named(value).unwrap()
}

fn bin(content: &[u8]) -> Vec<u8> {
    let mut out = BytesMut::new();
    value::put_bin(&mut out, content);
    out.to_vec()
}

fn array(elements: &[Vec<u8>]) -> Vec<u8> {
    [vec![0x90 | u8::try_from(elements.len()).unwrap()], elements.concat()].concat()
}

fn gzip(plain: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(plain).unwrap();
    encoder.finish().unwrap()
}

/// The record of one event of the tag `app`.
fn record_of(record: &[u8]) -> Value {
    let seen = see(&array(&[pack(&"app"), pack(&1_714_979_289), record.to_vec()]));
    assert_eq!((seen.payloads.len(), &seen.refused), (1, &vec![]), "{seen:?}");
    let record = RecordRef::parse(&seen.payloads[0]).unwrap().to_record(&Defaults::default(), 0);
    json!({"text": record.text, "id": record.id, "ts": record.ts_ms, "source": record.source, "tenant": record.tenant,
           "session": record.session, "tier": record.tier, "attrs": record.attrs})
}

fn mapped(record: &Value) -> Value {
    record_of(&pack(record))
}

/// Two events in each mode of the specification, and the frames they become.
/// Message mode takes two messages for them.
fn modes() -> Vec<(&'static str, Vec<u8>)> {
    let (one, two) = (
        b"\x92\xce\x66\x38\x81\xd9\x81\xa3log\xa2a\n",
        b"\x92\xd7\x00\x66\x38\x81\xd9\x07\x5b\xcd\x15\x82\xa1n\x01\xa3log\xa1b",
    );
    let entries = [&one[..], two].concat();
    let zipped = |packed: &[u8], how: &str| {
        array(&[pack(&"app"), bin(packed), pack(&json!({"size": 2, "compressed": how}))])
    };
    vec![
        ("Message", [b"\x93\xa3app", &one[1..], b"\x94\xa3app", &two[1..], b"\xc0"].concat()),
        ("Forward", [b"\x92\xa3app\x92", &entries[..]].concat()),
        ("PackedForward, bin", [b"\x93\xa3app\xc4\x23", &entries[..], b"\x81\xa4size\x02"].concat()),
        ("PackedForward, str", [b"\x92\xa3app\xd9\x23", &entries[..]].concat()),
        ("CompressedPackedForward, gzip", zipped(&gzip(&entries), "gzip")),
        ("CompressedPackedForward, gzip in parts", zipped(&[gzip(one), gzip(two)].concat(), "gzip")),
        ("CompressedPackedForward, zstd", zipped(&zstd::encode_all(&entries[..], 1).unwrap(), "zstd")),
    ]
}

#[test]
fn each_mode_gives_the_same_frames_to_the_byte() {
    let first = b"\x83\xa2ts\xcf\x00\x00\x01\x8f\x4c\xbb\x37\xa8\xa6source\xa3app\xa4text\xa1a";
    let second = b"\x84\xa2ts\xd7\xff\x1d\x6f\x34\x54\x66\x38\x81\xd9\xa6source\xa3app\xa1n\x01\xa4text\xa1b";
    for (mode, stream) in modes() {
        let seen = see(&stream);
        assert_eq!(seen.payloads, [&first[..], second], "{mode}");
        assert_eq!(seen.refused, Vec::<String>::new(), "{mode}");
    }
}

#[test]
fn the_first_text_key_with_a_text_is_the_text_and_the_rest_stays_as_it_came() {
    let all = mapped(&json!({"message": "m", "log": "l\r\n", "k": {"x": [1, null]}, "text": ""}));
    assert_eq!(
        (&all["text"], &all["ts"], &all["source"]),
        (&json!("l"), &json!(1_714_979_289_000_i64), &json!("app"))
    );
    assert_eq!(all["attrs"], json!({"message": "m", "k": {"x": [1, null]}, "record_text": ""}));
    let wrong_type = mapped(&json!({"log": {"a": 1}, "message": "m\n\n"}));
    assert_eq!((&wrong_type["text"], &wrong_type["attrs"]), (&json!("m\n"), &json!({"log": {"a": 1}})));
    let binary = record_of(&[b"\x81\xa3log".as_slice(), &bin(b"caf\xc3\xa9\n")].concat());
    assert_eq!((&binary["text"], &binary["attrs"]), (&json!("café"), &json!({})));
}

#[test]
fn our_fields_are_taken_where_their_type_is_right_and_renamed_where_not() {
    let right = mapped(&json!({"log": "x", "tenant": "a", "session": "s", "id": 7, "tier": "doc"}));
    assert_eq!(
        right,
        json!({"text": "x", "id": "7", "ts": 1_714_979_289_000_i64, "source": "app", "tenant": "a", "session": "s", "tier": "doc", "attrs": {}})
    );
    let wrong = mapped(
        &json!({"log": "x", "tenant": 1, "session": [], "id": {}, "tier": "frontend", "ts": "never", "source": "stdout"}),
    );
    assert_eq!(
        wrong["attrs"],
        json!({"record_tenant": 1, "record_session": [], "record_id": {}, "record_tier": "frontend",
               "record_ts": "never", "record_source": "stdout"})
    );
    assert_eq!((&wrong["tenant"], &wrong["source"]), (&json!("default"), &json!("app")));
    let twice = record_of(b"\x83\xa3log\xa1x\xa6tenant\xa1a\xa6tenant\xa1b");
    assert_eq!((&twice["tenant"], &twice["attrs"]), (&json!("a"), &json!({"record_tenant": "b"})));
}

#[test]
fn a_string_that_is_not_utf8_loses_neither_the_record_nor_its_bytes() {
    let record = record_of(b"\x83\xa3log\xa5caf\xe9\n\xa1a\x91\xa2\xff\xfe\xa2\xffk\xa1v");
    assert_eq!(record["text"], "caf\u{fffd}");
    assert_eq!(record["attrs"], json!({"text_bytes": "0x636166e9", "a": ["0xfffe"], "\u{fffd}k": "v"}));
    let tag = see(b"\x93\xa2\xffa\x01\x81\xa3log\xa1x");
    assert_eq!(RecordRef::parse(&tag.payloads[0]).unwrap().source, Some("\u{fffd}a"));
}

#[test]
fn metadata_of_fluent_bit_is_kept_and_its_group_markers_are_passed_over() {
    let now = b"\xd7\x00\x66\x38\x81\xd9\x00\x00\x00\x00";
    let event = |time: &[u8], metadata: &[u8]| [b"\x92\x92", time, metadata, b"\x81\xa3log\xa1x"].concat();
    let entries = [
        event(b"\xd7\x00\xff\xff\xff\xff\x00\x00\x00\x00", b"\x81\xa1g\x01"),
        event(now, b"\x80"),
        event(now, b"\x81\xa4otlp\x81\xa8severity\x09"),
        event(b"\xd7\x00\xff\xff\xff\xfe\x00\x00\x00\x00", b"\x80"),
    ];
    let seen = see(&[b"\x92\xa3app\xdd\x00\x00\x00\x04", &entries.concat()[..]].concat());
    let attrs: Vec<_> =
        seen.payloads.iter().map(|p| Value::Object(RecordRef::parse(p).unwrap().attrs())).collect();
    assert_eq!(attrs, [json!({}), json!({"event_metadata": {"otlp": {"severity": 9}}})]);
    assert_eq!(seen.refused, Vec::<String>::new());
}

#[test]
fn a_bad_event_costs_only_itself_and_the_chunk_is_answered() {
    let good = b"\x92\x01\x81\xa3log\xa1x".to_vec();
    let bad: [(&[u8], &str); 8] = [
        (b"\x92\x01\x81\xa1a\xa1b", "unfit missing_text"),
        (b"\x92\x01\x81\xa3log\xa1\n", "unfit missing_text"),
        (b"\x92\x01\x82\xa3log\xa1x\x07\xa1b", "unfit bad_key"),
        (b"\x92\xd3\x80\0\0\0\0\0\0\0\x81\xa3log\xa1x", "unfit bad_timestamp"),
        (b"\x92\x01\xa3log", "bad_event"),
        (b"\x92\xa1t\x81\xa3log\xa1x", "bad_event"),
        (b"\x93\x01\x81\xa3log\xa1x\x01", "bad_event"),
        (b"\x90", "bad_event"),
    ];
    let nested = [b"\x92\x01\x82\xa3log\xa1x\xa1a".to_vec(), vec![0x91; 40], vec![0xc0]].concat();
    let long = [b"\x92\x01\x81\xa3log\xda\x20\x00".as_slice(), &[b'x'; 0x2000]].concat();
    for (event, code) in bad.into_iter().chain([(&nested[..], "unfit too_deep"), (&long[..], "oversized")]) {
        let entries = [&good[..], event, &good].concat();
        let options = pack(&json!({"chunk": "c"}));
        for packed in [bin(&entries), [b"\x93".to_vec(), entries.clone()].concat()] {
            let seen = see(&array(&[pack(&"app"), packed, options.clone()]));
            assert_eq!((seen.payloads.len(), &seen.refused), (2, &vec![code.to_owned()]), "{event:x?}");
            assert_eq!(seen.acks, b"\x81\xa3ack\xa1c", "{event:x?}");
        }
    }
    let again = [b"\x92\x01\xdc\x01\x00".to_vec(), b"\xa2id\x01".repeat(256)].concat();
    let again = [&again[..2], b"\xde\x01\x00", &again[5..]].concat();
    let seen = see(&array(&[pack(&"app"), bin(&[&again[..], &good].concat())]));
    assert_eq!((seen.payloads.len(), seen.refused), (1, vec!["bad_event".to_owned()]));
}

#[test]
fn entries_that_break_off_give_what_came_before_and_the_stream_goes_on() {
    let good = b"\x92\x01\x81\xa3log\xa1x";
    let cut = [&good[..], &good[..5]].concat();
    let broken = [&good[..], b"\xc1", good].concat();
    let other = [&good[..], &b"\x07".repeat(9_999), good].concat();
    let mut flipped = gzip(&good.repeat(3));
    let last = flipped.len() - 1;
    flipped[last] ^= 1;
    let gzip_option = pack(&json!({"compressed": "gzip"}));
    for (packed, option, events, code) in [
        (&cut, pack(&Value::Null), 1, "bad_event"),
        (&broken, pack(&Value::Null), 1, "bad_event"),
        (&other, pack(&Value::Null), 1, "bad_event"),
        (&flipped, gzip_option.clone(), 3, "bad_compression"),
        (&b"none".to_vec(), gzip_option, 0, "bad_compression"),
        (&good.to_vec(), pack(&json!({"fluent_signal": 1})), 0, "unsupported_signal"),
    ] {
        let message = array(&[pack(&"app"), bin(packed), option]);
        let seen = see(&[message, modes()[0].1.clone()].concat());
        assert!(seen.payloads.len() >= 2 && seen.payloads.len() - 2 <= events, "{code}: {seen:?}");
        assert_eq!(seen.refused, [code], "{seen:?}");
    }
}

#[test]
fn what_speaks_another_protocol_is_refused_at_once() {
    for stream in ["GET / HTTP/1.1\r\n", "{\"log\": \"x\"}", "[\"t\", 1, {}]", "\u{16}\u{3}\u{1}"] {
        assert_eq!(see(stream.as_bytes()).refused, ["bad_message"], "{stream}");
    }
    assert_eq!(see(b"\xc1").refused, ["not_messagepack"]);
    assert_eq!(see(b"\xdd\xff\xff\xff\xff").refused, ["oversized"]);
    assert_eq!(see(b"\x93\xa3app\x01").refused, ["truncated"]);
}

#[test]
fn a_long_message_comes_in_runs_of_a_megabyte() {
    let entry = [b"\x92\x01\x81\xa3log\xda\x01\x00".as_slice(), &[b'x'; 256]].concat();
    let stream = array(&[pack(&"app"), bin(&entry.repeat(3_500))]);
    let terms = Terms {
        mapping: Mapping { text_keys: vec!["log".into()], max_frame: 4 << 10 },
        limits: Limits { entry: MOST, total: MOST as u64 },
    };
    let Ok(Request::Message(message)) = Request::read(&stream.into()) else { panic!() };
    let mut unpack = Unpack::new(message, &terms);
    let (mut run, mut runs, mut events) = (Run::default(), 0, 0);
    loop {
        let step = unpack.fill(&terms, &mut run);
        let (frames, count) = run.take();
        assert!(frames.len() < crate::frame::RUN_BYTES + (4 << 10));
        (runs, events) = (runs + 1, events + count);
        if step == Step::End {
            break;
        }
        assert_eq!(step, Step::Full);
    }
    assert_eq!((runs, events), (1, 3_500));
}

/// MessagePack values of any kind, most of them records.
fn any_value() -> impl Strategy<Value = Vec<u8>> {
    let key = prop_oneof![
        prop::sample::select(&["log", "text", "message", "id", "tenant", "tier", "ts", "source", "a"][..])
            .prop_map(|key| pack(&key)),
        any::<i64>().prop_map(|n| pack(&n)),
    ];
    let leaf = prop_oneof![
        "\\PC{0,9}\n?".prop_map(|text| pack(&text)),
        any::<i64>().prop_map(|n| pack(&n)),
        any::<f64>().prop_map(|n| pack(&n)),
        prop::collection::vec(any::<u8>(), 0..9).prop_map(|bytes| bin(&bytes)),
        prop::collection::vec(any::<u8>(), 0..9)
            .prop_map(|bytes| { [vec![0xa0 | u8::try_from(bytes.len()).unwrap()], bytes].concat() }),
        prop::sample::select(vec![
            &b"\xc0"[..],
            b"\xc3",
            b"\xd4\x07\x07",
            b"\xd7\0\x01\x02\x03\x04\x05\x06\x07\x08"
        ])
        .prop_map(<[u8]>::to_vec),
    ];
    leaf.prop_recursive(3, 24, 5, move |inner| {
        let pairs = prop::collection::vec((key.clone(), inner.clone()), 0..6);
        prop_oneof![
            3 => pairs.prop_map(|pairs| {
                let head = 0x80 | u8::try_from(pairs.len()).unwrap();
                pairs.into_iter().fold(vec![head], |map, (key, value)| [map, key, value].concat())
            }),
            1 => prop::collection::vec(inner, 0..4).prop_map(|values| array(&values)),
        ]
    })
}

/// Streams that are mostly right.
fn any_stream() -> impl Strategy<Value = Vec<u8>> {
    let time = prop_oneof![
        any::<u32>().prop_map(|n| pack(&n)),
        any::<[u8; 8]>().prop_map(|time| [&[0xd7, 0][..], &time].concat()),
        any::<[u8; 8]>().prop_map(|time| [&[0x92, 0xd7, 0][..], &time, &[0x81, 0xa1, b'm', 1]].concat()),
    ];
    let entries = prop::collection::vec((time, any_value()), 0..5).prop_map(|entries| {
        entries.into_iter().map(|(time, record)| array(&[time, record])).collect::<Vec<_>>()
    });
    let message = (entries, 0..6u8).prop_map(|(entries, mode)| {
        let option = |how: &str| pack(&json!({"chunk": "c", "compressed": how}));
        let (tag, all) = (pack(&"app"), entries.concat());
        match mode {
            0 => entries.iter().flat_map(|e| [b"\x93\xa3app", &e[1..]].concat()).collect(),
            1 => array(&[tag, array(&entries), option("text")]),
            2 => array(&[tag, bin(&all), option("text")]),
            3 => array(&[tag, bin(&gzip(&all)), option("gzip")]),
            4 => array(&[tag, bin(&zstd::encode_all(&all[..], 1).unwrap()), option("zstd")]),
            _ => vec![0xc0],
        }
    });
    prop::collection::vec(message, 0..5).prop_map(|messages| messages.concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(192))]

    #[test]
    fn however_a_stream_arrives_it_gives_the_same_events(
        stream in any_stream(),
        pieces in prop::collection::vec(1usize..40, 0..60),
    ) {
        let whole = see(&stream);
        prop_assert_eq!(&see_in(&stream, &pieces), &whole);
        prop_assert_eq!(&see_in(&stream, &vec![1; stream.len()]), &whole);
    }

    #[test]
    fn a_stream_cut_or_damaged_anywhere_is_refused_without_a_panic(
        stream in any_stream(),
        at in any::<prop::sample::Index>(),
        byte: u8,
    ) {
        let at = at.index(stream.len() + 1);
        let cut = see(&stream[..at]);
        prop_assert!(see(&stream).payloads.starts_with(&cut.payloads));
        let mut damaged = stream.clone();
        if let Some(hit) = damaged.get_mut(at) {
            *hit = byte;
        }
        see(&damaged);
    }

    #[test]
    fn any_bytes_are_read_or_refused_without_a_panic(bytes: Vec<u8>, head in 0x90u8..0x95) {
        see(&bytes);
        see(&[&[head, 0xa1, b't'][..], &bytes].concat());
        see(&[&[0x92, 0xa1, b't', 0xc4, u8::try_from(bytes.len()).unwrap_or(255)][..], &bytes].concat());
        target(&bytes);
    }
}
