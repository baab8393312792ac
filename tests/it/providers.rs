//! A daemon whose vectors come from a service, over TLS.

use std::{
    fs,
    path::Path,
    sync::{Arc, Mutex},
};

use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        ServerConfig,
        crypto::ring,
        pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    },
};
use tokio_util::task::AbortOnDropHandle;

use crate::{
    daemon::{HTTP, Site, eventually},
    tools,
};

const KEY: &str = "sk-of-the-test-0123456789";

/// A service that refuses texts with `poison` in them and fails at those with
/// `venom`, at an address.
struct Service {
    url: String,
    /// Texts that were answered with vectors.
    served: Arc<Mutex<Vec<String>>>,
    _task: AbortOnDropHandle<()>,
}

impl Service {
    async fn start(cert: &Path, key: &Path) -> Self {
        let certs = vec![CertificateDer::from_pem_file(cert).unwrap()];
        let tls = ServerConfig::builder_with_provider(ring::default_provider().into())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(certs, PrivateKeyDer::from_pem_file(key).unwrap())
            .unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(tls));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("https://{}/v1", listener.local_addr().unwrap());
        let served = Arc::new(Mutex::new(Vec::new()));
        let noted = Arc::clone(&served);
        let task = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                connections.spawn(serve(acceptor.clone(), stream, Arc::clone(&noted)));
            }
        });
        Self { url, served, _task: AbortOnDropHandle::new(task) }
    }
}

async fn serve(acceptor: TlsAcceptor, stream: TcpStream, served: Arc<Mutex<Vec<String>>>) {
    // Whoever does not trust the certificate goes away.
    let Ok(stream) = acceptor.accept(stream).await else { return };
    let mut stream = BufReader::new(stream);
    loop {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let Ok(byte) = stream.read_u8().await else { return };
            head.push(byte);
        }
        let head = String::from_utf8(head).unwrap().to_lowercase();
        assert!(head.starts_with("post /v1/embeddings "), "{head}");
        assert!(head.contains(&format!("authorization: bearer {KEY}\r\n")), "{head}");
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap();
        let mut body = vec![0; length.parse().unwrap()];
        stream.read_exact(&mut body).await.unwrap();
        let request: Value = serde_json::from_slice(&body).unwrap();
        let texts: Vec<String> = serde_json::from_value(request["input"].clone()).unwrap();
        let any = |word: &str| texts.iter().any(|text| text.contains(word));
        let (status, answer) = if any("venom") {
            (500, json!({"error": {"message": "worker died"}}))
        } else if any("poison") {
            (400, json!({"error": {"message": "unacceptable", "type": "invalid_request_error"}}))
        } else {
            served.lock().unwrap().extend(texts.iter().cloned());
            let vector = |text: &String| [1, text.len() % 7, text.len() % 5, 3];
            let data: Vec<Value> = (0..)
                .zip(&texts)
                .map(|(n, text): (u64, _)| json!({"index": n, "embedding": vector(text)}))
                .collect();
            (200, json!({"data": data, "usage": {"total_tokens": texts.len()}}))
        };
        let answer = answer.to_string();
        let reply = format!("HTTP/1.1 {status} X\r\ncontent-length: {}\r\n\r\n{answer}", answer.len());
        stream.write_all(reply.as_bytes()).await.unwrap();
        stream.flush().await.unwrap();
    }
}

/// A site whose pipeline asks this service, and trusts the authorities in
/// that file.
fn site(service: &Service, authorities: &Path) -> Site {
    let mut site = Site::new(HTTP);
    let text = fs::read_to_string(site.pipeline()).unwrap();
    let remote = format!(
        "provider = \"remote\"\nmodel = \"m\"\ndimensions = 4\n\
         [[embed.endpoint]]\nname = \"only\"\napi = \"openai\"\nurl = {:?}\nkey = \"${{IT_KEY}}\"\nmax_inputs = 8",
        service.url
    );
    fs::write(site.pipeline(), text.replace("provider = \"hashing\"", &remote)).unwrap();
    site.set("IT_KEY", KEY);
    site.set("SSL_CERT_FILE", authorities.to_str().unwrap());
    site
}

fn records(from: usize, to: usize) -> String {
    let line = |n: usize| {
        let what = match n {
            17 => "poison",
            23 => "venom",
            _ => "water",
        };
        format!(
            "{}\n",
            json!({"id": n.to_string(), "tenant": "default", "text": format!("record {n} is about {what}")})
        )
    };
    (from..to).map(line).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn records_get_vectors_over_tls_and_those_refused_are_dead_letters_with_their_reasons() {
    let folder = tempfile::tempdir().unwrap();
    let Some((authority, cert, key)) = tools::issued_certificate(folder.path()) else { return };
    let service = Service::start(&cert, &key).await;
    let site = site(&service, &authority);
    let daemon = site.start();
    let (status, reply) = daemon.post("/api/v1/ingest", "application/x-ndjson", records(0, 40)).await;
    assert_eq!(status, 200, "{reply}");
    let status = daemon.derived(40).await;
    assert_eq!((&status["derived"]["indexed"], &status["derived"]["dead_lettered"]), (&json!(38), &json!(2)));
    let hits = daemon.search(json!({"tenant": "default", "query": "water", "mode": "vector"})).await;
    assert!(!hits.is_empty());
    let letters = site.store().await.dead_letters(None, 0, 10).await.unwrap();
    assert_eq!(letters.len(), 2);
    for reason in ["HTTP 400: unacceptable", "HTTP 500: worker died"] {
        assert!(format!("{letters:?}").contains(reason), "{letters:?}");
    }
    let mut served = service.served.lock().unwrap().clone();
    served.retain(|text| text.starts_with("record"));
    let count = served.len();
    served.sort();
    served.dedup();
    assert_eq!((count, served.len()), (38, 38), "each was paid for once");
    let (_, metrics) = daemon.get("/metrics").await;
    assert!(metrics.contains("embed_requests_total{endpoint=\"only\",outcome=\"answered\"}"), "{metrics}");
    assert!(metrics.contains("embed_circuit_state{endpoint=\"only\"} 0"), "{metrics}");
    assert!(!daemon.log().contains(KEY) && !metrics.contains(KEY));
    daemon.stop_drained();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_whose_certificate_nobody_here_trusts_gets_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let Some((_, cert, key)) = tools::issued_certificate(folder.path()) else { return };
    let service = Service::start(&cert, &key).await;
    let other = folder.path().join("other");
    fs::create_dir(&other).unwrap();
    let Some((others, _)) = tools::certificate(&other) else { return };
    let site = site(&service, &others);
    let daemon = site.start();
    daemon.post("/api/v1/ingest", "application/x-ndjson", records(0, 1)).await;
    eventually("the log tells of the certificate", async || {
        daemon.log().contains("cannot work as configured") && daemon.log().contains("certificate")
    })
    .await;
    assert!(service.served.lock().unwrap().is_empty());
    daemon.kill();
}
