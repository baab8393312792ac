//! PostgreSQL's own programs.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use sqlx::ConnectOptions;
use sqlx::postgres::PgConnectOptions;

use crate::store::error::StoreError;

/// A program of PostgreSQL's, told which database to work on by its
/// environment: arguments are for everybody on the machine to see.
pub(super) struct Tool {
    name: &'static str,
    path: PathBuf,
    environment: Vec<(&'static str, String)>,
}

impl Tool {
    /// The program `name`, from the folder `bin` or else from `PATH`.
    pub fn new(name: &'static str, bin: Option<&Path>, database: &PgConnectOptions) -> Self {
        let path = bin.map_or_else(|| name.into(), |bin| bin.join(name));
        Self { name, path, environment: environment(database) }
    }

    /// Refuses a program that is older than the server of version `server`,
    /// such as 180004.
    pub async fn check(&self, server: i32) -> Result<(), StoreError> {
        let needed = server / 10_000;
        let said = self.run(vec!["--version".into()]).await.map_err(|error| StoreError::Tool {
            program: self.name,
            reason: format!(
                "{error}; install the client programs of PostgreSQL {needed} (Debian: postgresql-client-{needed}), \
                 or name the folder that has them in THALWEG_PG_BIN"
            ),
        })?;
        match major(&said) {
            Some(found) if found >= needed => Ok(()),
            _ => Err(StoreError::Tool {
                program: self.name,
                reason: format!(
                    "{} is too old for a server of version {needed}; install its client programs (Debian: \
                     postgresql-client-{needed}), or name the folder that has them in THALWEG_PG_BIN",
                    said.trim()
                ),
            }),
        }
    }

    /// Runs it to its end and returns what it printed.
    pub async fn run(&self, arguments: Vec<String>) -> Result<String, StoreError> {
        let failed = |reason| StoreError::Tool { program: self.name, reason };
        let mut command = Command::new(&self.path);
        command.args(arguments).envs(self.environment.iter().cloned()).stdin(Stdio::null());
        let output = tokio::task::spawn_blocking(move || command.output())
            .await
            .map_err(std::io::Error::other)
            .flatten()
            .map_err(|error| failed(format!("{} cannot be run: {error}", self.path.display())))?;
        match output.status.success() {
            true => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
            false => Err(failed(String::from_utf8_lossy(&output.stderr).trim().to_owned())),
        }
    }
}

/// 18 of `pg_dump (PostgreSQL) 18.4 (Debian 18.4-1)`.
fn major(version: &str) -> Option<i32> {
    let number = version.split_whitespace().find(|word| word.starts_with(|c: char| c.is_ascii_digit()))?;
    number.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

/// What libpq is told of a database.
fn environment(database: &PgConnectOptions) -> Vec<(&'static str, String)> {
    let host = match database.get_socket() {
        Some(socket) => socket.display().to_string(),
        None => database.get_host().to_owned(),
    };
    let mut environment = vec![
        ("PGHOST", host),
        ("PGPORT", database.get_port().to_string()),
        ("PGUSER", database.get_username().to_owned()),
        ("PGDATABASE", database.get_database().unwrap_or(database.get_username()).to_owned()),
    ];
    let mut url = database.to_url_lossy();
    for (name, value) in url.query_pairs() {
        let name = match name.as_ref() {
            "sslmode" => "PGSSLMODE",
            "sslrootcert" => "PGSSLROOTCERT",
            "sslcert" => "PGSSLCERT",
            "sslkey" => "PGSSLKEY",
            _ => continue,
        };
        environment.push((name, value.into_owned()));
    }
    if let Some(password) = url.password().map(str::to_owned) {
        // The only decoder at hand is that of queries; everything but letters
        // and digits is escaped here, so there is nothing else for it to read.
        url.set_query(Some(&password));
        let decoded = url.query_pairs().next().map(|(password, _)| password.into_owned());
        environment.extend(decoded.map(|password| ("PGPASSWORD", password)));
    }
    environment
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_found_in_what_programs_say() {
        assert_eq!(major("pg_dump (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)\n"), Some(15));
        assert_eq!(major("pg_dump (PostgreSQL) 18beta1"), Some(18));
        assert_eq!(major("nothing"), None);
    }

    #[test]
    fn the_password_goes_by_the_environment_as_it_was_meant() {
        let options: PgConnectOptions =
            "postgres://me:p%40ss%2Bw%26r%3Dd%25@db.example:5433/team?sslmode=require".parse().unwrap();
        let environment = environment(&options);
        let of = |wanted| environment.iter().find(|(name, _)| *name == wanted).unwrap().1.as_str();
        let known = ["PGHOST", "PGPORT", "PGUSER", "PGDATABASE", "PGSSLMODE", "PGPASSWORD"].map(of);
        assert_eq!(known, ["db.example", "5433", "me", "team", "require", "p@ss+w&r=d%"]);
    }
}
