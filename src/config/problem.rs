//! What is wrong with a pipeline file, and where.

use std::{fmt, io, ops::Range};

use serde::Serialize;

/// Why a pipeline file was refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigErrors {
    /// The file could not be read at all.
    #[error("{file}: the pipeline file cannot be read: {source}")]
    Unreadable {
        /// The path as it was given.
        file: String,
        /// What the operating system said (or that the file is not UTF-8).
        source: io::Error,
    },
    /// The file was read, and says what cannot be meant.
    #[error("{}", Rendered { file, problems })]
    Refused {
        /// The path as it was given.
        file: String,
        /// Every problem found, in the order of the file; never empty.
        problems: Vec<Problem>,
    },
}

impl ConfigErrors {
    /// What is wrong and where, without the lines of the file: they may hold
    /// what is not everybody's to read.
    pub fn places(&self) -> String {
        let Self::Refused { file, problems } = self else { return self.to_string() };
        let place =
            |problem: &Problem| format!("{file}:{}:{}: {}", problem.line, problem.column, problem.headline());
        problems.iter().map(place).collect::<Vec<_>>().join("\n")
    }

    /// The problems with a place in the file; none if it could not be read.
    pub fn problems(&self) -> &[Problem] {
        match self {
            Self::Unreadable { .. } => &[],
            Self::Refused { problems, .. } => problems,
        }
    }
}

/// One thing that is wrong, and where it stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
    /// Characters to underline, at least 1.
    pub width: usize,
    /// Dotted path of the key, such as `source[1].listen`; empty where the
    /// problem belongs to no key.
    pub key: String,
    /// What is wrong and what would be right.
    pub message: String,
    /// The word that was probably meant.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub suggestion: Option<String>,
    /// The line as it stands in the file.
    pub source_line: String,
}

impl Problem {
    /// Adds the word that was probably meant.
    #[must_use]
    pub(super) fn meant(mut self, suggestion: Option<String>) -> Self {
        self.suggestion = suggestion;
        self
    }

    /// The message with its suggestion, on one line.
    pub fn headline(&self) -> String {
        match &self.suggestion {
            Some(word) => format!("{}; did you mean `{word}`?", self.message),
            None => self.message.clone(),
        }
    }
}

/// A text in which problems are located.
#[derive(Clone, Copy)]
pub(super) struct Text<'a>(pub(super) &'a str);

impl Text<'_> {
    /// A problem at a range of bytes; a range outside the text is cut to it.
    pub(super) fn problem(self, span: &Range<usize>, key: &str, message: impl Into<String>) -> Problem {
        let start = self.0.floor_char_boundary(span.start);
        let (before, after) = self.0.split_at(start);
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        let (_, head) = before.split_at(line_start);
        let tail = after.lines().next().unwrap_or_default();
        let width = tail.char_indices().take_while(|(at, _)| start + at < span.end).count();
        Problem {
            line: before.matches('\n').count() + 1,
            column: head.chars().count() + 1,
            width: width.max(1),
            key: key.to_owned(),
            message: message.into(),
            suggestion: None,
            source_line: format!("{head}{tail}"),
        }
    }
}

/// Problems as a compiler shows them.
struct Rendered<'a> {
    file: &'a str,
    problems: &'a [Problem],
}

impl fmt::Display for Rendered<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, problem) in self.problems.iter().enumerate() {
            if i > 0 {
                f.write_str("\n\n")?;
            }
            let Problem { line, column, width, source_line, .. } = problem;
            writeln!(f, "{}:{line}:{column}: {}", self.file, problem.headline())?;
            let number = line.to_string();
            let gutter = " ".repeat(number.len());
            // Tabs are repeated, so that the caret stands right however wide they are shown.
            let indent: String =
                source_line.chars().take(column - 1).map(|c| if c == '\t' { '\t' } else { ' ' }).collect();
            writeln!(f, "{gutter} |")?;
            writeln!(f, "{number} | {source_line}")?;
            write!(f, "{gutter} | {indent}{}", "^".repeat(*width))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_is_shown_with_its_line_and_a_caret() {
        let text = "name = \"x\"\n\n[[source]]\n\tlisen = 1\n";
        let at = text.find("lisen").unwrap();
        let problem = Text(text)
            .problem(&(at..at + 5), "source[0].lisen", "unknown key `lisen`")
            .meant(Some("listen".to_owned()));
        assert_eq!((problem.line, problem.column, problem.width), (4, 2, 5));
        let errors = ConfigErrors::Refused { file: "x.toml".into(), problems: vec![problem] };
        assert_eq!(
            errors.to_string(),
            "x.toml:4:2: unknown key `lisen`; did you mean `listen`?\n  |\n4 | \tlisen = 1\n  | \t^^^^^"
        );
    }

    #[test]
    fn columns_count_characters_and_carets_end_with_the_line() {
        let text = "a = \"äöü\" # é\r\nb";
        let problem = Text(text).problem(&(text.find('#').unwrap()..usize::MAX), "", "m");
        assert_eq!((problem.line, problem.column, problem.width), (1, 11, 3));
        assert_eq!(problem.source_line, "a = \"äöü\" # é");
    }

    #[test]
    fn a_place_outside_the_text_is_its_end() {
        let problem = Text("ab\n").problem(&(99..100), "", "m");
        assert_eq!((problem.line, problem.column, problem.width), (2, 1, 1));
        assert_eq!(Text("").problem(&(0..0), "", "m").line, 1);
    }
}
