//! A second run over files that have not changed costs next to nothing: the
//! model's weights are not even read.

use std::{
    fs::{self, File},
    os::unix::fs::symlink,
    path::PathBuf,
    process::{Command, Output},
};

use crate::{
    cli::text,
    models::{FILES, MODEL, original},
};

/// A pipeline over a file, with a model's folder of its own.
struct Site {
    folder: tempfile::TempDir,
}

impl Site {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let site = Self { folder };
        fs::create_dir_all(site.model().join("1_Pooling")).unwrap();
        for file in FILES {
            symlink(original().join(file), site.model().join(file)).unwrap();
        }
        let root = site.folder.path();
        let (data, records) = (root.join("data"), root.join("records.jsonl"));
        let pipeline = format!(
            "name = 'rerun'\ndata_dir = {data:?}\n[http]\nlisten = '127.0.0.1:0'\n\
             [embed]\npatience = '0s'\n[[source]]\ntype = 'file'\npath = {records:?}\n"
        );
        fs::write(root.join("pipeline.toml"), pipeline).unwrap();
        site
    }

    fn model(&self) -> PathBuf {
        self.folder.path().join("models").join(MODEL)
    }

    fn records(&self, texts: &[&str]) {
        let lines: String = texts.iter().map(|text| format!("{{\"text\": \"{text}\"}}\n")).collect();
        fs::write(self.folder.path().join("records.jsonl"), lines).unwrap();
    }

    /// Puts in place of a file another of `length` bytes, all zero.
    fn blank(&self, file: &str, length: u64) {
        fs::remove_file(self.model().join(file)).unwrap();
        File::create(self.model().join(file)).unwrap().set_len(length).unwrap();
    }

    fn run(&self, more: &[&str]) -> Output {
        let root = self.folder.path();
        let mut command = Command::new(env!("CARGO_BIN_EXE_thalweg"));
        command.arg("run").arg(root.join("pipeline.toml")).args(more).env_remove("THALWEG_LOG");
        command.env("THALWEG_MODELS", root.join("models")).output().unwrap()
    }
}

#[test]
fn weights_are_needed_only_where_there_is_something_to_embed() {
    let site = Site::new();
    site.records(&["The river runs deepest where it is narrow.", "A log is the spine of it all."]);
    let first = site.run(&["--once"]);
    assert!(first.status.success(), "{}", text(&first));
    let length = fs::metadata(site.model().join("model.safetensors")).unwrap().len();

    site.blank("model.safetensors", length);
    let unchanged = site.run(&["--once"]);
    assert!(unchanged.status.success(), "{}", text(&unchanged));

    // What lives on answers queries, so it finds out at its start.
    let daemon = site.run(&[]);
    assert_eq!(daemon.status.code(), Some(1), "{}", text(&daemon));
    assert!(text(&daemon).contains("SHA-256"), "{}", text(&daemon));

    // A new record is kept, and nothing is computed with wrong weights.
    site.records(&["This one is new."]);
    let changed = site.run(&["--once"]);
    assert_eq!(changed.status.code(), Some(3), "{}", text(&changed));
    assert!(text(&changed).contains("SHA-256"), "{}", text(&changed));

    site.blank("model.safetensors", length - 1);
    let shorter = site.run(&["--once"]);
    assert_eq!(shorter.status.code(), Some(1), "{}", text(&shorter));
}
