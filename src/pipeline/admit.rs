//! Admission: each frame is proved once, before it enters the log.

use bytes::{Buf, Bytes};

use crate::{
    frame::PREFIX_BYTES,
    record::{Fault, RecordRef},
};

/// A part of a run of frames, in its order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Piece {
    /// Frames that are records, as they came.
    Good {
        /// The frames, end to end.
        frames: Bytes,
        /// How many.
        count: u32,
    },
    /// One frame that is not.
    Bad {
        /// Which frame of the run, from 0.
        index: u32,
        /// Where it begins, in bytes from the start of the run.
        at: usize,
        /// What is wrong with it.
        fault: Fault,
        /// Its payload.
        payload: Bytes,
    },
}

/// Splits a run of whole frames into the stretches that may enter the log and
/// the frames that may not. Copies nothing.
pub fn admit(run: &Bytes) -> Vec<Piece> {
    let mut pieces = Vec::new();
    let (mut good_from, mut good_count) = (0, 0);
    let (mut at, mut index) = (0, 0);
    let mut rest = run.clone();
    while let Ok(length) = rest.try_get_u32() {
        let payload = rest.split_to((length as usize).min(rest.len()));
        let after = at + PREFIX_BYTES + payload.len();
        match RecordRef::parse(&payload) {
            Ok(_) => good_count += 1,
            Err(fault) => {
                if good_count > 0 {
                    pieces.push(Piece::Good { frames: run.slice(good_from..at), count: good_count });
                }
                pieces.push(Piece::Bad { index, at, fault, payload });
                (good_from, good_count) = (after, 0);
            }
        }
        at = after;
        index += 1;
    }
    if good_count > 0 {
        pieces.push(Piece::Good { frames: run.slice(good_from..at), count: good_count });
    }
    pieces
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::put_frame;
    use bytes::BytesMut;
    use serde_json::json;

    #[test]
    fn a_bad_frame_costs_only_itself() {
        let good = rmp_serde::to_vec_named(&json!({"text": "x"})).unwrap();
        let mut run = BytesMut::new();
        for payload in [&good[..], &good, &[0xc1], &[], &good] {
            put_frame(&mut run, payload);
        }
        let run = run.freeze();
        let size = good.len() + 4;
        let pieces = admit(&run);
        assert_eq!(pieces[0], Piece::Good { frames: run.slice(..2 * size), count: 2 });
        assert!(matches!(&pieces[1], Piece::Bad { index: 2, at, fault, .. }
            if *at == 2 * size && fault.code() == "not_messagepack"));
        assert!(matches!(&pieces[2], Piece::Bad { index: 3, fault: Fault::Empty, .. }));
        assert_eq!(pieces[3], Piece::Good { frames: run.slice(2 * size + 9..), count: 1 });
        assert_eq!(pieces.len(), 4);
    }
}
