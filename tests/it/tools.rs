//! Interpreters with the clients of other people, installed once below
//! `target` in the versions named here.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::Command,
};

/// From PyPI.
const PYTHON: [&str; 2] = ["msgpack==1.2.4", "fluent-logger==0.11.1"];
/// From PyPI, for `tests/it/embed_server.rs`; apart from the others, because
/// they bring along many more.
const OPENAI: [&str; 2] = ["openai==3.54.0", "langchain-openai==1.7.3"];
/// From PyPI, for `tests/it/postgres.rs`.
const PGVECTOR: [&str; 3] = ["psycopg[binary]==3.3.9", "pgvector==0.5.1", "numpy==2.4.6"];
/// From PyPI, for `tests/it/api.rs`.
const SCHEMATHESIS: [&str; 1] = ["schemathesis==4.32.5"];
/// From npm.
const NODE: [&str; 2] = ["@fluent-org/logger@1.0.10", "@msgpack/msgpack@2.8.0"];
/// From npm, for `tests/it/identity.rs`.
const OIDC: [&str; 1] = ["oidc-provider@9.13.3"];

fn target(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("target").join(name)
}

/// A file below `tests/clients`.
pub fn client(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients").join(name)
}

/// Runs `install` unless `packages` are in `home` already. Tests run as
/// processes side by side, and one of them installs.
fn once(home: &Path, packages: &[&str], install: impl FnOnce()) {
    fs::create_dir_all(home).unwrap();
    let lock = File::create(home.join("lock")).unwrap();
    lock.lock().unwrap();
    let installed = home.join("installed");
    if fs::read_to_string(&installed).unwrap_or_default() != packages.join(" ") {
        install();
        fs::write(installed, packages.join(" ")).unwrap();
    }
}

fn run(program: &Path, arguments: &[&str]) {
    let done = Command::new(program)
        .args(arguments)
        .output()
        .unwrap_or_else(|error| panic!("{} does not run: {error}", program.display()));
    assert!(done.status.success(), "{} {arguments:?}: {done:?}", program.display());
}

/// A Python with clients of this protocol. Fails loudly without Python: the
/// client in the documentation must not rot unseen.
pub fn python() -> PathBuf {
    python_with("test-venv", &PYTHON)
}

/// A Python with clients of OpenAI's.
pub fn python_of_openai() -> PathBuf {
    python_with("test-venv-openai", &OPENAI)
}

/// A Python with pgvector's client library.
pub fn python_of_pgvector() -> PathBuf {
    python_with("test-venv-pgvector", &PGVECTOR)
}

/// The program that asks an HTTP interface what nobody would.
pub fn schemathesis() -> PathBuf {
    python_with("test-venv-schemathesis", &SCHEMATHESIS).with_file_name("schemathesis")
}

fn python_with(home: &str, packages: &[&str]) -> PathBuf {
    let home = target(home);
    let python = home.join("bin/python");
    once(&home, packages, || {
        let version = Command::new("python3").arg("--version").output();
        assert!(version.is_ok_and(|done| done.status.success()), "this test needs python3 with venv and pip");
        run(Path::new("python3"), &["-m", "venv", home.to_str().unwrap()]);
        let install = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check"];
        run(&python, &[&install[..], packages].concat());
    });
    python
}

/// A `node` that finds the packages above; none, said loudly, where node and
/// npm are missing.
pub fn node() -> Option<Command> {
    node_with("test-node", &NODE)
}

/// As [`node`], with an OpenID Connect provider.
pub fn node_of_oidc() -> Option<Command> {
    node_with("test-node-oidc", &OIDC)
}

fn node_with(home: &str, packages: &[&str]) -> Option<Command> {
    let present =
        |tool: &str| Command::new(tool).arg("--version").output().is_ok_and(|done| done.status.success());
    if !present("node") || !present("npm") {
        eprintln!(
            "SKIPPED: node or npm is missing, so nothing was tested (Debian: apt-get install nodejs npm)"
        );
        return None;
    }
    let home = target(home);
    once(&home, packages, || {
        let options = ["install", "--no-save", "--no-audit", "--no-fund", "--ignore-scripts", "--prefix"];
        run(Path::new("npm"), &[&options[..], &[home.to_str().unwrap()], packages].concat());
    });
    let mut node = Command::new("node");
    node.env("NODE_PATH", home.join("node_modules"));
    Some(node)
}

/// A certificate authority's certificate, one for 127.0.0.1 that it issued,
/// and the key of that, in files of `folder`; none where [`certificate`] has
/// none.
pub fn issued_certificate(folder: &Path) -> Option<(PathBuf, PathBuf, PathBuf)> {
    let (authority, authority_key) = certificate(folder)?;
    let file = |name: &str| folder.join(name);
    let (cert, key, request, names) =
        (file("issued.pem"), file("issued.key"), file("issued.csr"), file("issued.cnf"));
    std::fs::write(&names, "subjectAltName = IP:127.0.0.1\n").unwrap();
    let openssl = |args: &[&str], files: &[(&str, &Path)]| {
        let mut command = Command::new("openssl");
        command.args(args);
        for (option, file) in files {
            command.arg(option).arg(file);
        }
        let done = command.output().unwrap();
        assert!(done.status.success(), "{done:?}");
    };
    openssl(
        &[
            "req",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:prime256v1",
            "-nodes",
            "-subj",
            "/CN=issued",
        ],
        &[("-keyout", &key), ("-out", &request)],
    );
    openssl(
        &["x509", "-req", "-days", "2", "-CAcreateserial"],
        &[
            ("-in", &request),
            ("-CA", &authority),
            ("-CAkey", &authority_key),
            ("-extfile", &names),
            ("-out", &cert),
        ],
    );
    Some((authority, cert, key))
}

/// A certificate for 127.0.0.1 and its key, in files of `folder`; none, said
/// loudly, where openssl is missing.
pub fn certificate(folder: &Path) -> Option<(PathBuf, PathBuf)> {
    let (cert, key) = (folder.join("cert.pem"), folder.join("key.pem"));
    let made = Command::new("openssl")
        .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"])
        .args(["-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"])
        .arg("-keyout")
        .arg(&key)
        .arg("-out")
        .arg(&cert)
        .output();
    match made {
        Ok(done) if done.status.success() => Some((cert, key)),
        Ok(done) => panic!("openssl makes no certificate: {done:?}"),
        Err(error) => {
            eprintln!(
                "SKIPPED: openssl does not run ({error}), so TLS was not tested (Debian: apt-get install openssl)"
            );
            None
        }
    }
}
