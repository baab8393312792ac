//! The events of one message, one run of frames at a time.

use bytes::Bytes;

use super::{
    event::{Mapping, Put, Run},
    inflate::{BadCompression, Inflate, Limits},
    message::{Events, Message},
    value::Walk,
};
use crate::frame::RUN_BYTES;

/// A part of a message that is refused, for its dead letter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Refused {
    pub(super) code: &'static str,
    pub(super) message: String,
    /// The part; of one too long to be kept, its head.
    pub(super) payload: Bytes,
}

/// Why [`Unpack::fill`] came back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// The run is full.
    Full,
    /// After the frames of the run comes one that admission will refuse.
    Unfit(Bytes),
    /// After the frames of the run comes something that is no event.
    Refused(Refused),
    /// There are no more events.
    End,
}

/// What a message may hold and how it becomes frames.
#[derive(Clone, Debug)]
pub(super) struct Terms {
    pub(super) mapping: Mapping,
    pub(super) limits: Limits,
}

/// A message being unpacked.
pub(super) struct Unpack {
    tag: Bytes,
    rest: Rest,
    /// Entries end to end, or the time and record of the one event.
    entries: Bytes,
    at: usize,
}

enum Rest {
    /// The one event of a message in Message mode.
    One,
    /// `entries` is all there is.
    Nothing,
    /// More can be inflated. The message's own bytes are kept for a dead
    /// letter.
    Packed { inflate: Box<Inflate>, packed: Bytes },
    /// All that is left is to say why nothing of the message is taken.
    Refusal(Refused),
}

impl Unpack {
    /// Begins with the first event.
    pub(super) fn new(message: Message, terms: &Terms) -> Self {
        let Message { tag, events, signal, .. } = message;
        let most = terms.mapping.max_frame;
        let (rest, entries) = match events {
            Events::One(event) => (Rest::One, event),
            Events::Entries(entries) | Events::Packed(_, entries) if signal != 0 => {
                let message = format!("signal {signal} is metrics or traces; only logs, signal 0, are taken");
                (Rest::Refusal(refused("unsupported_signal", message, &entries, most)), Bytes::new())
            }
            Events::Entries(entries) => (Rest::Nothing, entries),
            Events::Packed(compression, packed) => {
                let rest = match Inflate::new(compression, packed.clone(), terms.limits) {
                    Ok(inflate) => Rest::Packed { inflate: Box::new(inflate), packed },
                    Err(error) => Rest::Refusal(bad_compression(&error, &packed, most)),
                };
                (rest, Bytes::new())
            }
        };
        Self { tag, rest, entries, at: 0 }
    }

    /// Whether a step takes long enough to be worth another thread.
    pub(super) fn is_packed(&self) -> bool {
        matches!(self.rest, Rest::Packed { .. })
    }

    /// Adds frames to `run` until it is full or something else is to be done
    /// first. To be called again until it says [`Step::End`].
    pub(super) fn fill(&mut self, terms: &Terms, run: &mut Run) -> Step {
        let most = terms.mapping.max_frame;
        run.make_room(self.entries.len() - self.at);
        loop {
            if self.at == self.entries.len() {
                if let Some(step) = self.next_entries(most) {
                    return step;
                }
                run.make_room(self.entries.len());
            }
            if run.frames.len() >= RUN_BYTES {
                return Step::Full;
            }
            let from = self.at;
            match self.put(terms, run) {
                Put::Done => {}
                Put::Unfit(frame) => return Step::Unfit(frame),
                Put::Oversized { bytes, head } => {
                    let message =
                        format!("the record has {bytes} bytes, over the cap of {most}; it was not taken");
                    return Step::Refused(Refused { code: "oversized", message, payload: head });
                }
                Put::NoEvent => {
                    let event = self.entries.slice(from..self.at);
                    let message =
                        "not an event: [time, record], the time in seconds or an EventTime, the record a map";
                    return Step::Refused(refused("bad_event", message.to_owned(), &event, most));
                }
                Put::Unreadable => {
                    let rest = self.entries.split_off(from);
                    let message = format!("the last {} bytes of the entries are no entries", rest.len());
                    return Step::Refused(refused("bad_event", message, &rest, most));
                }
            }
        }
    }

    fn put(&mut self, terms: &Terms, run: &mut Run) -> Put {
        let mut walk = Walk::at(&self.entries, self.at);
        if matches!(self.rest, Rest::One) {
            self.at = self.entries.len();
            return run.put_event(&terms.mapping, &self.tag, &mut walk).unwrap_or(Put::NoEvent);
        }
        let put = run.put_entry(&terms.mapping, &self.tag, &mut walk);
        self.at = walk.position();
        put
    }

    /// Goes on to the next entries; the step to take if there are none.
    fn next_entries(&mut self, most: usize) -> Option<Step> {
        match std::mem::replace(&mut self.rest, Rest::Nothing) {
            Rest::One | Rest::Nothing => Some(Step::End),
            Rest::Refusal(refused) => Some(Step::Refused(refused)),
            Rest::Packed { mut inflate, packed } => match inflate.next() {
                Ok(None) => Some(Step::End),
                Ok(Some(entries)) => {
                    (self.entries, self.at) = (entries, 0);
                    self.rest = Rest::Packed { inflate, packed };
                    None
                }
                Err(error) => Some(Step::Refused(bad_compression(&error, &packed, most))),
            },
        }
    }
}

fn bad_compression(error: &BadCompression, packed: &Bytes, most: usize) -> Refused {
    refused("bad_compression", error.to_string(), packed, most)
}

/// A refusal that keeps up to `most` bytes.
pub(super) fn refused(code: &'static str, message: String, bytes: &Bytes, most: usize) -> Refused {
    Refused { code, message, payload: bytes.slice(..bytes.len().min(most)) }
}
