//! What `thalweg check FILE` says.

use serde_json::{Value, json};

use super::{ConfigErrors, Pipeline};

/// The result of checking one pipeline file.
#[derive(Debug)]
pub struct Check<'a> {
    file: &'a str,
    result: &'a Result<Pipeline, ConfigErrors>,
}

impl<'a> Check<'a> {
    /// The result of loading `file`.
    pub fn new(file: &'a str, result: &'a Result<Pipeline, ConfigErrors>) -> Self {
        Self { file, result }
    }

    /// Whether the file can be run.
    pub fn passed(&self) -> bool {
        self.result.is_ok()
    }

    /// For people: each problem under its line, then a count; or what the
    /// pipeline is.
    pub fn to_text(&self) -> String {
        match self.result {
            Ok(pipeline) => {
                let sources: Vec<_> = pipeline.sources.iter().map(|source| source.name()).collect();
                format!(
                    "{}: fine\npipeline `{}`, stream `{}`, sources: {}\nconfiguration digest {}\n",
                    self.file,
                    pipeline.name,
                    pipeline.stream,
                    sources.join(", "),
                    pipeline.digest()
                )
            }
            Err(error) => match error.problems().len() {
                0 => format!("{error}\n"),
                1 => format!("{error}\n\n1 problem\n"),
                n => format!("{error}\n\n{n} problems\n"),
            },
        }
    }

    /// For programs: `file`, `ok`, `errors` (each with `line`, `column`,
    /// `width`, `key`, `message`, `source_line` and, where there is one,
    /// `suggestion`; an unreadable file has only a `message`), and of a file
    /// that passed `name`, `digest` and `full_digest`.
    pub fn to_json(&self) -> Value {
        match self.result {
            Ok(pipeline) => json!({
                "file": self.file,
                "ok": true,
                "errors": [],
                "name": pipeline.name,
                "digest": pipeline.digest(),
                "full_digest": pipeline.full_digest(),
            }),
            Err(ConfigErrors::Refused { problems, .. }) => {
                json!({"file": self.file, "ok": false, "errors": problems})
            }
            Err(error) => {
                json!({"file": self.file, "ok": false, "errors": [{"message": error.to_string()}]})
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{super::parse, *};

    const FINE: &str = "name = \"x\"\n[[source]]\ntype = \"tcp\"\n";

    fn check(text: &str, see: impl FnOnce(&Check<'_>)) {
        let result = parse(text, "x.toml", &|_| None);
        see(&Check::new("x.toml", &result));
    }

    #[test]
    fn a_file_that_passes_says_what_it_is() {
        check(FINE, |check| {
            assert!(check.passed());
            assert!(check.to_text().starts_with("x.toml: fine\npipeline `x`, stream `x`, sources: tcp\n"));
            let json = check.to_json();
            assert_eq!((&json["ok"], &json["errors"]), (&json!(true), &json!([])));
            assert_eq!(json["digest"].as_str().unwrap().len(), 64);
        });
    }

    #[test]
    fn a_problem_is_complete_for_programs() {
        check(&format!("{FINE}lisen = \"127.0.0.1:1\"\n"), |check| {
            assert!(!check.passed());
            assert!(check.to_text().ends_with("^^^^^\n\n1 problem\n"), "{}", check.to_text());
            assert_eq!(
                check.to_json(),
                json!({"file": "x.toml", "ok": false, "errors": [{
                    "line": 4, "column": 1, "width": 5, "key": "source[0].lisen", "message": "unknown key `lisen`",
                    "suggestion": "listen", "source_line": "lisen = \"127.0.0.1:1\"",
                }]})
            );
        });
    }

    #[test]
    fn an_unreadable_file_is_an_error_without_a_place() {
        let result = super::super::load("no/such/file.toml".as_ref(), &|_| None);
        let check = Check::new("no/such/file.toml", &result);
        assert!(check.to_text().starts_with("no/such/file.toml: the pipeline file cannot be read: "));
        assert!(check.to_json()["errors"][0]["message"].as_str().unwrap().contains("cannot be read"));
    }
}
