//! What one write and one fsync make durable together, and its answers.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, oneshot};

use super::{
    AppendError, Appended,
    producers::{Claim, Position, Producers, entry_bytes},
};
use crate::frame::FrameBatch;

/// Where an answer goes.
pub(super) type ReplyTo<T> = oneshot::Sender<Result<T, AppendError>>;

/// Frames on their way in, or numbers of frames that were refused.
pub(super) struct Append {
    pub frames: Bytes,
    /// How many; 0 where only numbers are to be taken.
    pub count: u32,
    /// The numbers of the frames, if their producer numbers them.
    pub claim: Option<Claim>,
    pub reply: ReplyTo<Appended>,
    /// Room in the queue, given back when the append is answered.
    pub room: OwnedSemaphorePermit,
}

/// An epoch to be opened.
pub(super) struct Open {
    pub producer: Arc<str>,
    pub epoch: Option<u64>,
    pub sequence: Option<u64>,
    pub reply: ReplyTo<Position>,
}

/// What can be made durable.
pub(super) enum Item {
    Append(Append),
    Open(Open),
}

impl Item {
    /// Bytes of a batch that it takes at most.
    pub fn bytes(&self) -> usize {
        match self {
            Self::Append(append) => {
                append.frames.len() + append.claim.as_ref().map_or(0, |claim| entry_bytes(&claim.producer))
            }
            Self::Open(open) => entry_bytes(&open.producer),
        }
    }

    /// Answers with an error.
    pub fn refuse(self, error: &AppendError) {
        match self {
            Self::Append(append) => drop(append.reply.send(Err(error.clone()))),
            Self::Open(open) => drop(open.reply.send(Err(error.clone()))),
        }
    }
}

enum Decided {
    Append { answer: Result<Appended, AppendError>, reply: ReplyTo<Appended>, room: OwnedSemaphorePermit },
    Open { answer: Result<Position, AppendError>, reply: ReplyTo<Position> },
}

/// Items of which is decided what is new, and which wait until that is
/// durable.
#[derive(Default)]
pub(super) struct Group {
    decided: Vec<Decided>,
    frames: Vec<Bytes>,
    count: u32,
}

impl Group {
    /// Decides about `items`. What `producers` learn of it is settled once the
    /// group is durable.
    pub fn decide(items: Vec<Item>, producers: &mut Producers) -> Self {
        let mut group = Self {
            decided: Vec::with_capacity(items.len()),
            frames: Vec::with_capacity(items.len()),
            count: 0,
        };
        for item in items {
            let decided = match item {
                Item::Append(append) => group.append(append, producers),
                Item::Open(Open { producer, epoch, sequence, reply }) => {
                    let answer = producers.open(&producer, epoch, sequence).map_err(AppendError::from);
                    Decided::Open { answer, reply }
                }
            };
            group.decided.push(decided);
        }
        group
    }

    fn append(&mut self, append: Append, producers: &mut Producers) -> Decided {
        let Append { frames, count, claim, reply, room } = append;
        let taken = claim.map_or(Ok(0), |claim| producers.take(&claim));
        let answer = taken.map_err(AppendError::from).map(|duplicates| {
            let (frames, count) = match duplicates {
                0 => (frames, count),
                n => without_first(n, frames, count),
            };
            let offset = self.count.into();
            if count > 0 {
                self.count += count;
                self.frames.push(frames);
            }
            Appended { offset, count, duplicates }
        });
        Decided::Append { answer, reply, room }
    }

    /// Frames to be written, end to end.
    pub fn frames(&self) -> &[Bytes] {
        &self.frames
    }

    /// How many there are.
    pub fn count(&self) -> u32 {
        self.count
    }

    /// How many were put together.
    pub fn len(&self) -> usize {
        self.decided.len()
    }

    /// Answers each, now that the frames are durable from `base` on.
    pub fn answer(self, base: u64) {
        for decided in self.decided {
            match decided {
                Decided::Append { answer, reply, room } => {
                    let _ = reply.send(answer.map(|a| Appended { offset: base + a.offset, ..a }));
                    drop(room);
                }
                Decided::Open { answer, reply } => drop(reply.send(answer)),
            }
        }
    }

    /// Answers each with an error.
    pub fn refuse(self, error: &AppendError) {
        for decided in self.decided {
            match decided {
                Decided::Append { reply, .. } => drop(reply.send(Err(error.clone()))),
                Decided::Open { reply, .. } => drop(reply.send(Err(error.clone()))),
            }
        }
    }
}

/// The frames after the first `n`, and how many they are.
fn without_first(n: u32, bytes: Bytes, count: u32) -> (Bytes, u32) {
    let all = FrameBatch { base_offset: 0, append_time_ms: 0, count, bytes };
    all.starting_at(n.into()).map_or((Bytes::new(), 0), |rest| (rest.bytes, rest.count))
}

#[cfg(test)]
mod tests {
    use bytes::BytesMut;
    use tokio::sync::Semaphore;

    use super::*;
    use crate::{frame::put_frame, log::ProducerError};

    type Answer = oneshot::Receiver<Result<Appended, AppendError>>;

    fn append(payloads: &[&[u8]], first: Option<u64>) -> (Item, Answer) {
        let mut frames = BytesMut::new();
        payloads.iter().for_each(|payload| put_frame(&mut frames, payload));
        let count = payloads.len() as u32;
        let (reply, answer) = oneshot::channel();
        let room = Arc::new(Semaphore::new(1)).try_acquire_owned().unwrap();
        let claim = first.map(|first| Claim { producer: "p".into(), epoch: 0, first, count: count.max(1) });
        (Item::Append(Append { frames: frames.freeze(), count, claim, reply, room }), answer)
    }

    #[test]
    fn only_what_is_new_is_written_and_each_is_told_where_its_own_went() {
        let mut producers = Producers::default();
        let (items, mut answers): (Vec<_>, Vec<_>) = [
            append(&[b"a", b"b"], Some(0)),
            append(&[b"x"], None),
            append(&[b"b", b"c"], Some(1)),
            append(&[], Some(3)),
            append(&[b"late"], Some(9)),
            append(&[b"a"], Some(0)),
            append(&[b"e"], Some(4)),
        ]
        .into_iter()
        .unzip();
        let group = Group::decide(items, &mut producers);
        let written: Vec<u8> = group.frames().concat().into_iter().filter(|b| *b != 0 && *b != 1).collect();
        assert_eq!((written.as_slice(), group.count()), (&b"abxce"[..], 5));
        group.answer(100);
        let mut told = |n: usize| answers[n].try_recv().unwrap();
        let appended = |offset, count, duplicates| Appended { offset, count, duplicates };
        assert_eq!(told(0).unwrap(), appended(100, 2, 0));
        assert_eq!(told(1).unwrap(), appended(102, 1, 0));
        assert_eq!(told(2).unwrap(), appended(103, 1, 1));
        assert_eq!(told(3).unwrap().count, 0);
        let hole = told(4).unwrap_err();
        assert!(matches!(
            hole,
            AppendError::Producer(ProducerError::OutOfSequence { expected: 4, got: 9, .. })
        ));
        assert_eq!((told(5).unwrap().count, told(6).unwrap()), (0, appended(104, 1, 0)));
    }
}
