//! Offsets counted as lost.

use std::ops::Range;

use sqlx::{Row, SqliteConnection};

use crate::store::error::{Doing, StoreError};
use crate::store::lost::without;

/// Remembers ranges as lost.
pub(super) async fn put(
    connection: &mut SqliteConnection,
    pipeline: &str,
    stream: &str,
    ranges: &[Range<u64>],
) -> Result<(), StoreError> {
    for range in ranges {
        sqlx::query("INSERT OR REPLACE INTO lost VALUES (?, ?, ?, ?)")
            .bind(pipeline)
            .bind(stream)
            .bind(range.start.cast_signed())
            .bind(range.end.cast_signed())
            .execute(&mut *connection)
            .await
            .doing("remembering lost offsets")?;
    }
    Ok(())
}

/// Takes those of `offsets`, which ascend, that were counted as lost out of
/// that count and into that of what is indexed.
pub(super) async fn take_back(
    connection: &mut SqliteConnection,
    pipeline: &str,
    stream: &str,
    offsets: &[u64],
) -> Result<(), StoreError> {
    let (Some(first), Some(last)) = (offsets.first(), offsets.last()) else { return Ok(()) };
    let doing = "taking back lost offsets";
    let rows = sqlx::query(
        "DELETE FROM lost WHERE pipeline = ? AND stream = ? AND first_offset <= ? AND next_offset > ?
         RETURNING first_offset, next_offset",
    )
    .bind(pipeline)
    .bind(stream)
    .bind(last.cast_signed())
    .bind(first.cast_signed())
    .fetch_all(&mut *connection)
    .await
    .doing(doing)?;
    let (mut left, mut lost) = (Vec::new(), 0u64);
    for row in rows {
        let offset = |column| row.try_get::<i64, _>(column).map(i64::cast_unsigned).doing(doing);
        let range = offset("first_offset")?..offset("next_offset")?;
        lost += range.end - range.start;
        left.extend(without(range, offsets));
    }
    put(connection, pipeline, stream, &left).await?;
    let back = lost - left.iter().map(|range| range.end - range.start).sum::<u64>();
    sqlx::query(
        "UPDATE checkpoints SET lost = lost - ?1, indexed = indexed + ?1 WHERE pipeline = ?2 AND stream = ?3",
    )
    .bind(back.cast_signed())
    .bind(pipeline)
    .bind(stream)
    .execute(connection)
    .await
    .doing(doing)?;
    Ok(())
}
