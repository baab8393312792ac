//! One transaction, and how statements run in it.

use futures::future::BoxFuture;
use sqlx::postgres::{PgArguments, PgQueryResult, PgRow};
use sqlx::{Arguments, Encode, Executor, FromRow, Postgres, SqlSafeStr, SqlStr, Transaction, Type};

use super::copy::CopyRows;
use crate::store::error::{Doing, StoreError};

/// One transaction. Dropped, it is rolled back.
pub(super) struct Session {
    transaction: Transaction<'static, Postgres>,
    prepared: bool,
}

impl Session {
    /// Statements are `prepared` once per connection, or each time anew.
    pub fn new(transaction: Transaction<'static, Postgres>, prepared: bool) -> Self {
        Self { transaction, prepared }
    }

    /// A statement, to be given its parameters and run.
    pub fn query(&self, sql: impl SqlSafeStr) -> Statement {
        Statement { sql: sql.into_sql_str(), arguments: Ok(PgArguments::default()), prepared: self.prepared }
    }

    /// Runs statements without parameters, one after the other.
    pub async fn script(&mut self, sql: String) -> Result<(), sqlx::Error> {
        self.transaction.execute(sqlx::AssertSqlSafe(sql)).await.map(drop)
    }

    /// Copies rows into `target`, a table or a table with a list of columns.
    pub async fn copy(&mut self, target: &str, rows: CopyRows) -> Result<(), sqlx::Error> {
        if rows.rows() == 0 {
            return Ok(());
        }
        let statement = format!("COPY {target} FROM STDIN (FORMAT BINARY)");
        let mut copy = self.transaction.copy_in_raw(&statement).await?;
        copy.send(rows.finish()).await?;
        copy.finish().await.map(drop)
    }

    /// Makes everything since its beginning last.
    pub async fn commit(self, doing: &'static str) -> Result<(), StoreError> {
        self.transaction.commit().await.doing(doing)
    }
}

/// A statement and its parameters.
///
/// Only the reading of rows depends on their type: all that the driver does
/// for a statement is compiled once.
pub(super) struct Statement {
    sql: SqlStr,
    arguments: Result<PgArguments, sqlx::Error>,
    prepared: bool,
}

impl Statement {
    /// Gives the next parameter its value.
    pub fn bind<'v, T: Encode<'v, Postgres> + Type<Postgres>>(mut self, value: T) -> Self {
        self.arguments = self.arguments.and_then(|mut arguments| {
            arguments.add(value).map_err(sqlx::Error::Encode)?;
            Ok(arguments)
        });
        self
    }

    /// Has it planned for these parameters.
    pub fn planned_anew(mut self) -> Self {
        self.prepared = false;
        self
    }

    /// Every row as the driver gives it.
    pub fn rows(self, session: &mut Session) -> BoxFuture<'_, Result<Vec<PgRow>, sqlx::Error>> {
        Box::pin(async move {
            let query = sqlx::query_with(self.sql, self.arguments?).persistent(self.prepared);
            query.fetch_all(&mut *session.transaction).await
        })
    }

    /// Runs it for what it does.
    pub fn run(self, session: &mut Session) -> BoxFuture<'_, Result<PgQueryResult, sqlx::Error>> {
        Box::pin(async move {
            let query = sqlx::query_with(self.sql, self.arguments?).persistent(self.prepared);
            query.execute(&mut *session.transaction).await
        })
    }

    /// Every row.
    pub async fn all<T: for<'r> FromRow<'r, PgRow>>(
        self,
        session: &mut Session,
    ) -> Result<Vec<T>, sqlx::Error> {
        self.rows(session).await?.iter().map(T::from_row).collect()
    }

    /// The first row, if there is one.
    pub async fn optional<T: for<'r> FromRow<'r, PgRow>>(
        self,
        session: &mut Session,
    ) -> Result<Option<T>, sqlx::Error> {
        self.rows(session).await?.first().map(T::from_row).transpose()
    }

    /// The first row.
    pub async fn one<T: for<'r> FromRow<'r, PgRow>>(self, session: &mut Session) -> Result<T, sqlx::Error> {
        self.optional(session).await?.ok_or(sqlx::Error::RowNotFound)
    }

    /// The first column of every row.
    pub async fn scalars<T>(self, session: &mut Session) -> Result<Vec<T>, sqlx::Error>
    where
        (T,): for<'r> FromRow<'r, PgRow>,
    {
        Ok(self.all::<(T,)>(session).await?.into_iter().map(|(value,)| value).collect())
    }

    /// The first column of the first row, if there is one.
    pub async fn optional_scalar<T>(self, session: &mut Session) -> Result<Option<T>, sqlx::Error>
    where
        (T,): for<'r> FromRow<'r, PgRow>,
    {
        Ok(self.optional::<(T,)>(session).await?.map(|(value,)| value))
    }

    /// The first column of the first row.
    pub async fn scalar<T>(self, session: &mut Session) -> Result<T, sqlx::Error>
    where
        (T,): for<'r> FromRow<'r, PgRow>,
    {
        Ok(self.one::<(T,)>(session).await?.0)
    }
}
