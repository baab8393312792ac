//! One request of a client, taken apart: its mode, its options, and where its
//! events lie. Nothing is copied.

use bytes::{Bytes, BytesMut};

use super::value::{Head, Walk, put_bin, put_str};

/// Longest chunk id that is answered. The specification's have 24 bytes.
const MAX_CHUNK_ID_BYTES: usize = 1 << 10;

/// What a client may send once it is let in.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Request {
    /// nil: nothing is meant by it.
    Heartbeat,
    /// Events.
    Message(Message),
}

/// Events of one tag.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Message {
    pub(super) tag: Bytes,
    pub(super) events: Events,
    /// To be answered once every event is safe.
    pub(super) chunk: Option<Chunk>,
    /// What the entries are: 0 for logs, the only kind that is taken.
    pub(super) signal: u64,
}

/// Where the events of a message lie.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Events {
    /// Message mode: a time and a record, end to end.
    One(Bytes),
    /// Forward and PackedForward mode: entries, end to end.
    Entries(Bytes),
    /// CompressedPackedForward mode.
    Packed(Compression, Bytes),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Compression {
    Gzip,
    Zstd,
}

/// A client's name for a message that it wants acknowledged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Chunk {
    id: Bytes,
    binary: bool,
}

impl Chunk {
    /// Appends `{"ack": chunk}`, with the id in the type it came in.
    pub(super) fn put_ack(&self, out: &mut BytesMut) {
        out.extend_from_slice(b"\x81\xa3ack");
        if self.binary { put_bin(out, &self.id) } else { put_str(out, &self.id) }
    }
}

/// Why a well-formed value is no request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum BadRequest {
    #[error(
        "a {found} is no message of the Forward protocol, which consists of arrays; \
         JSON, HTTP and other protocols are not spoken here"
    )]
    NotAnArray { found: &'static str },
    #[error("an array of {found} is no message; it has 2 to 4 elements: tag, events, options")]
    Length { found: u32 },
    #[error("the tag is a {found}; it must be a string")]
    Tag { found: &'static str },
    #[error("the options are a {found}; they must be a map")]
    Options { found: &'static str },
    #[error("the option `{option}` is a {found}; it must be {wanted}")]
    Option { option: &'static str, found: &'static str, wanted: &'static str },
}

impl Request {
    /// Takes `raw`, one whole value, apart.
    pub(super) fn read(raw: &Bytes) -> Result<Self, BadRequest> {
        let mut walk = Walk::new(raw);
        let elements = match walk.head() {
            Some(Head::Nil) => return Ok(Self::Heartbeat),
            Some(Head::Array(n)) => n,
            head => return Err(BadRequest::NotAnArray { found: name(head) }),
        };
        let length = BadRequest::Length { found: elements };
        if !(2..=4).contains(&elements) {
            return Err(length);
        }
        let tag = match walk.head() {
            Some(head @ (Head::Str(_) | Head::Bin(_) | Head::Nil)) => walk.content(head).unwrap_or_default(),
            head => return Err(BadRequest::Tag { found: name(head) }),
        };
        let start = walk.position();
        let slice = |from, to| raw.get(from..to).map(|part| raw.slice_ref(part)).unwrap_or_default();
        // The mode is told by the second element.
        let (events, after) = match walk.head() {
            Some(head @ (Head::Str(_) | Head::Bin(_))) => {
                let packed = raw.slice_ref(walk.content(head).unwrap_or_default());
                (Events::Entries(packed), 2)
            }
            Some(Head::Array(entries)) => {
                let from = walk.position();
                walk.pass(entries.into());
                (Events::Entries(slice(from, walk.position())), 2)
            }
            _ if elements < 3 => return Err(length),
            _ => {
                walk = Walk::at(raw, start);
                walk.pass(2);
                (Events::One(slice(start, walk.position())), 3)
            }
        };
        if elements > after + 1 {
            return Err(length);
        }
        let options = if elements > after { Options::read(&mut walk, raw)? } else { Options::default() };
        let events = match (events, options.compressed) {
            (Events::Entries(entries), Some(compression)) if after == 2 => {
                Events::Packed(compression, entries)
            }
            (events, _) => events,
        };
        let (tag, chunk) = (raw.slice_ref(tag), options.chunk);
        Ok(Self::Message(Message { tag, events, chunk, signal: options.signal }))
    }
}

fn name(head: Option<Head>) -> &'static str {
    head.map_or("nothing", Head::type_name)
}

#[derive(Default)]
struct Options {
    chunk: Option<Chunk>,
    compressed: Option<Compression>,
    signal: u64,
}

impl Options {
    /// Reads what is known and passes over the rest, `size` included: the
    /// entries are counted as they are read.
    fn read(walk: &mut Walk<'_>, raw: &Bytes) -> Result<Self, BadRequest> {
        let mut options = Self::default();
        let pairs = match walk.head() {
            Some(Head::Nil) => 0,
            Some(Head::Map(pairs)) => pairs,
            head => return Err(BadRequest::Options { found: name(head) }),
        };
        for _ in 0..pairs {
            let key = walk.value().unwrap_or_default();
            let mut key = Walk::new(key);
            let key = key.head().and_then(|head| key.content(head)).unwrap_or_default();
            let value = walk.value().unwrap_or_default();
            let mut value = Walk::new(value);
            let head = value.head().unwrap_or(Head::Nil);
            let content = value.content(head).unwrap_or_default();
            match (key, head) {
                (_, Head::Nil) => {}
                (b"chunk", Head::Str(n) | Head::Bin(n)) if n <= MAX_CHUNK_ID_BYTES => {
                    let binary = matches!(head, Head::Bin(_));
                    options.chunk = Some(Chunk { id: raw.slice_ref(content), binary });
                }
                (b"chunk", _) => {
                    let wanted = "a string of at most 1,024 bytes";
                    return Err(BadRequest::Option { option: "chunk", found: head.type_name(), wanted });
                }
                // The specification: other values are ignored.
                (b"compressed", _) => {
                    options.compressed = match content {
                        b"gzip" => Some(Compression::Gzip),
                        b"zstd" => Some(Compression::Zstd),
                        _ => None,
                    };
                }
                (b"fluent_signal", Head::Uint(signal)) => options.signal = signal,
                _ => {}
            }
        }
        Ok(options)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(raw: &[u8]) -> Result<Request, BadRequest> {
        Request::read(&Bytes::copy_from_slice(raw))
    }

    fn message(raw: &[u8]) -> Message {
        match read(raw) {
            Ok(Request::Message(message)) => message,
            other => panic!("{other:?}"),
        }
    }

    /// The chunk id of the specification's examples.
    const ID: &[u8] = b"p8n9gmxTQVC8/nh2wlKKeQ==";

    #[test]
    fn each_mode_is_told_by_its_second_element() {
        // ["t", 1, {}], ["t", EventTime, {}, nil]
        assert_eq!(message(b"\x93\xa1t\x01\x80").events, Events::One(Bytes::from_static(b"\x01\x80")));
        let time = b"\xd7\0\x66\x38\x81\xd9\0\0\0\x01\x80";
        let with_time = [b"\x94\xa1t", &time[..], b"\xc0"].concat();
        assert_eq!(message(&with_time).events, Events::One(Bytes::from_static(time)));
        // ["t", [[1, {}], [2, {}]]]
        let two = message(b"\x92\xa1t\x92\x92\x01\x80\x92\x02\x80");
        assert_eq!(two.events, Events::Entries(Bytes::from_static(b"\x92\x01\x80\x92\x02\x80")));
        // The same in binary and in a string.
        for head in [b"\xc4\x06".as_slice(), b"\xa6"] {
            let packed = [b"\x92\xa1t", head, b"\x92\x01\x80\x92\x02\x80"].concat();
            assert_eq!(message(&packed).events, two.events);
        }
        let zipped = message(b"\x93\xa1t\xc4\x01x\x81\xaacompressed\xa4gzip");
        assert_eq!(zipped.events, Events::Packed(Compression::Gzip, Bytes::from_static(b"x")));
        let other = message(b"\x93\xa1t\xc4\x01x\x81\xaacompressed\xa4text");
        assert_eq!(other.events, Events::Entries(Bytes::from_static(b"x")));
        assert_eq!(read(b"\xc0"), Ok(Request::Heartbeat));
    }

    #[test]
    fn an_ack_is_byte_for_byte_the_one_of_the_specification() {
        let with_id =
            |head: &[u8]| [b"\x93\xa1t\x90\x83\xa4size\x00\xa5chunk", head, ID, b"\xa1x\x90"].concat();
        // {"ack": "p8n9gmxTQVC8/nh2wlKKeQ=="}: a map of one, a string of 3, a
        // string of 24.
        let expected = b"\x81\xa3\x61\x63\x6b\xb8p8n9gmxTQVC8/nh2wlKKeQ==";
        for head in [b"\xb8".as_slice(), b"\xd9\x18", b"\xda\x00\x18"] {
            let mut ack = BytesMut::new();
            message(&with_id(head)).chunk.unwrap().put_ack(&mut ack);
            assert_eq!(&ack[..], expected);
        }
        let mut ack = BytesMut::new();
        message(&with_id(b"\xc4\x18")).chunk.unwrap().put_ack(&mut ack);
        assert_eq!(&ack[..], [b"\x81\xa3ack\xc4\x18", ID].concat());
        assert_eq!(message(b"\x93\xa1t\x90\x81\xa5chunk\xc0").chunk, None);
    }

    #[test]
    fn what_is_no_message_is_refused_with_what_it_is() {
        let long = [b"\x93\xa1t\x90\x81\xa5chunk\xda\x04\x01".as_slice(), &[b'x'; 1_025]].concat();
        for (raw, part) in [
            (b"\x47".as_slice(), "a integer is no message"),
            (b"\x81\xa1a\x01", "a map is no message"),
            (b"\x90", "an array of 0"),
            (b"\x91\xa1t", "an array of 1"),
            (b"\x92\xa1t\x01", "an array of 2"),
            (b"\x94\xa1t\x90\x80\x80", "an array of 4"),
            (b"\x95\xa1t\x01\x80\x80\x80", "an array of 5"),
            (b"\x93\x07\x01\x80", "the tag is a integer"),
            (b"\x93\xa1t\x90\x07", "the options are a integer"),
            (b"\x93\xa1t\x90\x81\xa5chunk\x07", "`chunk` is a integer"),
            (&long, "`chunk` is a string; it must be a string of at most 1,024 bytes"),
        ] {
            let message = read(raw).unwrap_err().to_string();
            assert!(message.contains(part), "{raw:x?}: {message}");
        }
    }
}
