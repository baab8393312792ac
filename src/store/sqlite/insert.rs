//! Writing many rows with few statements.

use sqlx::query_builder::Separated;
use sqlx::{QueryBuilder, Sqlite, SqliteConnection};

/// Rows per statement, largest first. Few sizes, so that each statement is
/// prepared once and found again; a call per row costs several times more in
/// handing it to the connection's thread than SQLite needs to run it.
const GROUPS: [usize; 3] = [64, 8, 1];

/// Runs `head (..), (..) tail` over all `rows`, `bind` pushing the values of
/// one row, and returns how many rows were written.
pub(super) async fn insert_rows<T>(
    connection: &mut SqliteConnection,
    head: &str,
    tail: &str,
    rows: &[T],
    bind: impl Fn(&mut Separated<'_, Sqlite, &'static str>, &T),
) -> Result<u64, sqlx::Error> {
    let mut written = 0;
    let mut rest = rows;
    for size in GROUPS {
        let (groups, remainder) = rest.split_at(rest.len() - rest.len() % size);
        for group in groups.chunks(size) {
            let mut insert = QueryBuilder::<Sqlite>::new(head);
            insert.push_values(group, |mut values, row| bind(&mut values, row));
            insert.push(tail);
            written += insert.build().execute(&mut *connection).await?.rows_affected();
        }
        rest = remainder;
    }
    Ok(written)
}

/// Numbers as a JSON array, for `IN (SELECT value FROM json_each(?))`: one
/// prepared statement whatever their count.
pub(super) fn json_array(keys: impl IntoIterator<Item = i64>) -> String {
    let mut json = String::from("[");
    for (i, key) in keys.into_iter().enumerate() {
        if i > 0 {
            json.push(',');
        }
        json.push_str(&key.to_string());
    }
    json.push(']');
    json
}
