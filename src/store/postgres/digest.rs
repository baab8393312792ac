//! The content of tables, digested by the server.
//!
//! A row is the SHA-256 of those of its columns, each in the binary form that
//! its type is sent in: settings of a session, and how rows are laid out, make
//! no difference. Generated columns follow from the others and are left out.

use sqlx::AssertSqlSafe;

use super::session::Session;
use crate::store::backup::{Rows, TableDigest};

/// Every table of the schema, by name.
pub(super) async fn digests(session: &mut Session) -> Result<Vec<TableDigest>, sqlx::Error> {
    let tables: Vec<(String, String)> = session
        .query(
            "SELECT c.relname::text,
                    string_agg(format('coalesce(sha256(%s(%I)), decode(repeat(''00'', 32), ''hex''))',
                                      t.typsend::regproc, a.attname), ' || ' ORDER BY a.attnum)
             FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid JOIN pg_type t ON t.oid = a.atttypid
             WHERE c.relnamespace = 'thalweg'::regnamespace AND c.relkind = 'r'
               AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = ''
             GROUP BY c.relname ORDER BY c.relname COLLATE \"C\"",
        )
        .all(session)
        .await?;
    let mut digests = Vec::with_capacity(tables.len());
    for (table, row) in tables {
        let select = format!(
            "SELECT count(*), {} FROM (SELECT encode(sha256({row}), 'hex') AS h FROM thalweg.\"{table}\") r",
            [1, 17, 33, 49]
                .map(|at| format!("coalesce(sum(('x' || substr(h, {at}, 16))::bit(64)::bigint), 0)::text"))
                .join(", ")
        );
        let (rows, a, b, c, d): (i64, String, String, String, String) =
            session.query(AssertSqlSafe(select)).planned_anew().one(session).await?;
        let sums = [a, b, c, d].map(|sum| sum.parse::<i128>());
        let mut sum = Rows { rows: rows.cast_unsigned(), ..Rows::default() };
        for (to, from) in sum.sums.iter_mut().zip(sums) {
            let from = from.map_err(|error| sqlx::Error::Decode(error.into()))?;
            // Modulo 2^64, as adding up with overflow is.
            *to = from.rem_euclid(1 << 64) as u64;
        }
        digests.push(sum.of(table));
    }
    Ok(digests)
}
