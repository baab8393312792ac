//! Offsets counted as lost.

use std::ops::Range;

use super::Session;
use crate::store::error::{Doing, StoreError};
use crate::store::lost::without;

/// Remembers ranges as lost.
pub(super) async fn put(
    session: &mut Session,
    pipeline: &str,
    stream: &str,
    ranges: &[Range<u64>],
) -> Result<(), StoreError> {
    for range in ranges {
        session
            .query(
                "INSERT INTO thalweg.lost VALUES ($1, $2, $3, $4)
                 ON CONFLICT (pipeline, stream, first_offset) DO UPDATE SET next_offset = excluded.next_offset",
            )
            .bind(pipeline.to_owned())
            .bind(stream.to_owned())
            .bind(range.start.cast_signed())
            .bind(range.end.cast_signed())
            .run(session)
            .await
            .doing("remembering lost offsets")?;
    }
    Ok(())
}

/// Takes those of `offsets`, which ascend, that were counted as lost out of
/// that count and into that of what is indexed.
pub(super) async fn take_back(
    session: &mut Session,
    pipeline: &str,
    stream: &str,
    offsets: &[u64],
) -> Result<(), StoreError> {
    let (Some(first), Some(last)) = (offsets.first(), offsets.last()) else { return Ok(()) };
    let doing = "taking back lost offsets";
    let rows: Vec<(i64, i64)> = session
        .query(
            "DELETE FROM thalweg.lost
             WHERE pipeline = $1 AND stream = $2 AND first_offset <= $3 AND next_offset > $4
             RETURNING first_offset, next_offset",
        )
        .bind(pipeline.to_owned())
        .bind(stream.to_owned())
        .bind(last.cast_signed())
        .bind(first.cast_signed())
        .all(session)
        .await
        .doing(doing)?;
    let (mut left, mut lost) = (Vec::new(), 0u64);
    for (first, next) in rows {
        let range = first.cast_unsigned()..next.cast_unsigned();
        lost += range.end - range.start;
        left.extend(without(range, offsets));
    }
    put(session, pipeline, stream, &left).await?;
    let back = lost - left.iter().map(|range| range.end - range.start).sum::<u64>();
    session
        .query(
            "UPDATE thalweg.checkpoints SET lost = lost - $1, indexed = indexed + $1
             WHERE pipeline = $2 AND stream = $3",
        )
        .bind(back.cast_signed())
        .bind(pipeline.to_owned())
        .bind(stream.to_owned())
        .run(session)
        .await
        .doing(doing)?;
    Ok(())
}
