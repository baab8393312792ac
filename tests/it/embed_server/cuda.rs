//! The service with `--device cuda`, where there is no GPU: without CUDA's
//! libraries, and with stand-ins for them (`tests/cuda/stand_in.cpp`).

use std::{path::Path, process::Command};

use serde_json::Value;

use super::{Server, asked, of_the_engine, refused};

/// A folder with the three libraries; `None`, said loudly, where there is no
/// C++ compiler. NVRTC itself instead of its stand-in if `THALWEG_TEST_NVRTC`
/// names it.
fn stand_ins() -> Option<(tempfile::TempDir, String)> {
    let folder = tempfile::tempdir().unwrap();
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cuda/stand_in.cpp");
    let nvrtc = std::env::var("THALWEG_TEST_NVRTC").ok();
    let mut compiler = Command::new("c++");
    compiler.args(["-std=c++17", "-O3", "-march=native", "-U_FORTIFY_SOURCE", "-Wno-unknown-pragmas"]);
    compiler.args(["-shared", "-fPIC", "-DHEAD_SIZE=32"]);
    if nvrtc.is_some() {
        compiler.arg("-DNVRTC_IS_THERE");
    }
    let built = match compiler.arg("-o").arg(folder.path().join("libcuda.so")).arg(source).output() {
        Ok(built) => built,
        Err(error) => {
            eprintln!(
                "SKIPPED: there is no C++ compiler ({error}), so no calls to CUDA were tested (Debian: apt-get install g++)"
            );
            return None;
        }
    };
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    let copy = |name: &str| {
        std::fs::copy(folder.path().join("libcuda.so"), folder.path().join(name)).unwrap();
    };
    copy("libcublas.so");
    let mut path = folder.path().to_str().unwrap().to_owned();
    match nvrtc {
        Some(library) => path += &format!(":{}", Path::new(&library).parent().unwrap().display()),
        None => copy("libnvrtc.so"),
    }
    Some((folder, path))
}

async fn device(server: &Server) -> Value {
    let (_, models) = server.get("/v1/models").await;
    serde_json::from_str::<Value>(&models).unwrap()["data"][0]["device"].take()
}

fn smallest_cosine(ours: &[Vec<f32>], theirs: &[Vec<f32>]) -> f32 {
    assert_eq!(ours.len(), theirs.len());
    let cosine = |(a, b): (&Vec<f32>, &Vec<f32>)| a.iter().zip(b).map(|(x, y)| x * y).sum();
    ours.iter().zip(theirs).map(cosine).fold(f32::INFINITY, f32::min)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_gpu_the_processor_computes_and_the_log_says_so() {
    let (code, said) = refused(&["--device", "cuda", "--element", "int8"], &[]);
    assert!(code == Some(2) && said.contains("choose --element bf16 or fp32"), "{said}");

    let arguments = ["--device", "cuda", "--element", "fp32", "--threads", "1"];
    let stand_ins = stand_ins();
    // With the libraries of a machine that has none, and with a driver that has
    // no device. Real ones find none either.
    let mut environments = vec![vec![("CUDA_VISIBLE_DEVICES", "-1")]];
    if let Some((_, path)) = &stand_ins {
        for driver in ["absent", "none"] {
            environments.push(vec![("LD_LIBRARY_PATH", path.as_str()), ("STAND_IN", driver)]);
        }
    }
    for environment in environments {
        let server = Server::start_with(&arguments, &environment);
        let log = std::fs::read_to_string(&server.log).unwrap();
        let said: Vec<_> = log.lines().filter(|line| line.contains("no CUDA device: ")).collect();
        assert!(said.len() == 1 && said[0].contains("; computing on the CPU"), "{log}");
        assert!(!log.contains("panicked"), "{log}");
        assert_eq!(device(&server).await, "cpu");
        let texts = ["a text".to_owned(), "and another".to_owned()];
        let vectors = server.post(&asked(&texts)).await.vectors();
        assert!(smallest_cosine(&vectors, &of_the_engine(&texts).await.0) > 0.999_999);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gpu_is_asked_as_its_libraries_want_and_gives_the_engines_vectors() {
    let Some((_folder, path)) = stand_ins() else { return };
    let environment = [("LD_LIBRARY_PATH", path.as_str())];
    for (element, least) in [("auto", 0.999_5), ("fp32", 0.999_99)] {
        let server = Server::start_with(&["--device", "cuda", "--element", element], &environment);
        assert_eq!(device(&server).await, "Stand-in", "{}", std::fs::read_to_string(&server.log).unwrap());
        let texts: Vec<String> =
            (0..12).map(|n| format!("text {n} about {}", "the river and the sea ".repeat(n % 4))).collect();
        let (expected, _) = of_the_engine(&texts).await;
        // A list, and small requests that come at once.
        let all = asked(&texts);
        let each: Vec<_> = texts.iter().take(4).map(|text| asked(std::slice::from_ref(text))).collect();
        let small = futures::future::join_all(each.iter().map(|body| server.post(body)));
        let (list, small) = tokio::join!(server.post(&all), small);
        let small: Vec<_> = small.iter().flat_map(|answer| answer.vectors()).collect();
        for cosine in [smallest_cosine(&list.vectors(), &expected), smallest_cosine(&small, &expected[..4])] {
            assert!(cosine > least && cosine < 1.000_1, "{element}: {cosine}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gpu_that_computes_something_else_or_fails_gives_no_vectors() {
    let Some((_folder, path)) = stand_ins() else { return };
    let environment = |what| [("LD_LIBRARY_PATH", path.as_str()), ("STAND_IN", what)];
    let arguments = ["--device", "cuda", "--threads", "1"];
    // One that is there and does not open is not one that is not there.
    let (code, said) = refused(&arguments, &environment("closed"));
    assert!(code == Some(1) && said.contains("the CUDA device failed: the device does not open"), "{said}");
    let (code, said) = refused(&arguments, &environment("wrong"));
    assert!(code == Some(1) && said.contains("the CUDA device is not used"), "{said}");
    // While it is compared with the processor.
    let (code, said) = refused(&arguments, &environment("fails:3"));
    assert!(code == Some(1) && said.contains("the CUDA device failed"), "{said}");
    // Some requests later.
    let server = Server::start_with(&arguments, &environment("fails:200"));
    let body = asked(&["a text".to_owned()]);
    let mut answered = 0;
    let refusal = loop {
        let answer = server.post(&body).await;
        if answer.status != 200 {
            break answer;
        }
        answered += 1;
        assert!(answered < 20);
    };
    assert_eq!(refusal.refusal(), (503, "model_failed", None));
    assert!(answered > 0);
    // It does not come back, and whoever sends requests here is told so.
    let (status, health) = server.get("/health/ready").await;
    assert!(status == 503 && health.contains("restart the service"), "{status} {health}");
    let log = std::fs::read_to_string(&server.log).unwrap();
    assert!(log.contains("the CUDA device failed") && !log.contains("panicked"), "{log}");
}
