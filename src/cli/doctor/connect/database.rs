//! PostgreSQL.

use super::Check;
use crate::{
    clock,
    config::Pipeline,
    store::{DatabaseProbe, probe},
};

const OLDEST: i32 = 150_000;
const NOTABLE_MS: i64 = 30 * 1000;

/// Asks the database as the role that the daemon would be; changes nothing.
pub(super) async fn check(pipeline: &Pipeline) -> Vec<Check> {
    let Some(url) = &pipeline.store.url else {
        return vec![Check::ok("database", "a SQLite file")];
    };
    match probe(url.reveal(), clock::system_ms()).await {
        Ok(probe) => of(&probe),
        Err(error) => vec![Check::problem(
            "database",
            error.to_string(),
            "see that store.url names the host, port, role and database, and that the server lets it in",
        )],
    }
}

/// What a database that answered says.
fn of(probe: &DatabaseProbe) -> Vec<Check> {
    let mut checks = vec![if probe.version_number < OLDEST {
        Check::problem(
            "database",
            format!("{}: PostgreSQL {}", probe.database, probe.version),
            "it must be 15 or newer",
        )
    } else {
        Check::ok("database", format!("{}: PostgreSQL {}", probe.database, probe.version))
    }];
    checks.push(match (&probe.pgvector, &probe.pgvector_available) {
        (Some(version), _) => Check::ok("database: pgvector", version.clone()),
        (None, Some(version)) => Check::warning(
            "database: pgvector",
            format!("{version} is there and not installed in this database"),
            "CREATE EXTENSION vector, as a superuser, before the first record; without it every search compares \
             all of a tenant's vectors in the daemon",
        ),
        (None, None) => Check::warning(
            "database: pgvector",
            "missing on the server",
            "install it (Debian: postgresql-17-pgvector), then CREATE EXTENSION vector; without it every search \
             compares all of a tenant's vectors in the daemon",
        ),
    });
    checks.push(if probe.may_make_schema {
        Check::ok("database: schema", "the role may make and change it")
    } else {
        Check::problem(
            "database: schema",
            "the role may neither make the schema `thalweg` nor change it",
            "GRANT CREATE ON DATABASE … TO the role, or log in as the schema's owner",
        )
    });
    checks.push(match (probe.has_reader, probe.bypasses_security) {
        (false, _) => Check::problem(
            "database: searches' role",
            "`thalweg_reader` is missing or may not be taken on",
            "as a superuser: CREATE ROLE thalweg_reader; GRANT thalweg_reader TO the role",
        ),
        (true, true) => Check::warning(
            "database: searches' role",
            "searches run as `thalweg_reader`; the role itself is not subject to row-level security",
            "log in as a role that is neither a superuser nor has BYPASSRLS",
        ),
        (true, false) => Check::ok("database: searches' role", "thalweg_reader"),
    });
    checks.push(if probe.ahead_ms.abs() > NOTABLE_MS {
        Check::warning(
            "database: clock",
            format!("{} s apart", probe.ahead_ms / 1000),
            "set the clocks of this machine and of the server",
        )
    } else {
        Check::ok("database: clock", "the same as here")
    });
    checks
}

#[cfg(test)]
mod tests {
    use super::{super::super::Verdict, *};

    #[test]
    fn what_would_keep_a_daemon_from_starting_is_a_problem_and_what_slows_it_a_warning() {
        let well = DatabaseProbe {
            database: "u@h:5432/d".into(),
            version: "18.4".into(),
            version_number: 180_004,
            pgvector: Some("0.8.5".into()),
            pgvector_available: None,
            may_make_schema: true,
            bypasses_security: false,
            has_reader: true,
            ahead_ms: 20,
        };
        let verdicts = |probe: DatabaseProbe| of(&probe).iter().map(|c| c.verdict).collect::<Vec<_>>();
        use Verdict::{Ok, Problem, Warning};
        assert_eq!(verdicts(well.clone()), [Ok; 5]);
        let old = DatabaseProbe { version_number: 140_000, pgvector: None, ..well.clone() };
        assert_eq!(verdicts(old), [Problem, Warning, Ok, Ok, Ok]);
        let wrong =
            DatabaseProbe { may_make_schema: false, has_reader: false, ahead_ms: -90_000, ..well.clone() };
        assert_eq!(verdicts(wrong), [Ok, Ok, Problem, Problem, Warning]);
        assert_eq!(verdicts(DatabaseProbe { bypasses_security: true, ..well })[3], Warning);
    }
}
